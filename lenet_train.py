"""Train LeNet on an OFRecord dataset, with OneFlow's own reader and image decoders.

    $ python lenet_train.py
    [7.363248]
    [7.435774]
    ...
    [0.00111472]

The losses go to stdout, one per step, everything else to stderr. configs/lenet.yaml
lists all settings with their default values; `--name value` overrides them.
Read main() first: dataset -> reader -> decoders -> LeNet -> loop.
"""

from runtime.environment import check_environment

check_environment(__name__)

from runtime.guard import guard

guard(__name__, "`python -m ofrecord check DIR` looks for damaged images in a dataset")

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from lenet import ranks
from lenet.config import TrainConfig, parse_config
from lenet.datasets import check_fit, choose_decoder, records_per_rank
from lenet.device import choose_device
from lenet.engine import flow
from lenet.evaluation import Evaluation
from lenet.model import LeNet, Spec
from lenet.progress import Progress
from lenet.run import LOSS_PICTURE, PREDICTIONS_PICTURE, Plan, Run, open_run, plain, seed_of
from lenet.step import EagerStep, GraphStep
from ofrecord.manifest import Manifest
from ofrecord.scan import open_dataset
from ofrecord.staging import dataset_in_use
from runtime.cli import InputError, become_rank, count, log, run_main, stop_requests

nn = flow.nn
functional = flow.nn.functional


def main() -> None:
    become_rank(ranks.RANK, ranks.WORLD_SIZE)
    config, resume = parse_config()
    with dataset_in_use(config.dataset_dir), dataset_in_use(config.eval_dataset_dir):
        run_training(config, resume)


def run_training(config: TrainConfig, resume: bool) -> None:
    """Check datasets and configuration, build the model and train it."""
    dataset, eval_dataset = (
        folder
        and open_dataset(
            folder, config.image_feature, config.label_feature, config.check_hashes or None
        )
        for folder in (config.dataset_dir, config.eval_dataset_dir)
    )
    check_fit(config, dataset, eval_dataset)
    digests = {"dataset": dataset.digest, "eval_dataset": eval_dataset and eval_dataset.digest}
    # Each machine may have its own copy of the datasets, in a folder of its own.
    ranks.check_all_ranks_agree(
        dict(plain(config), **digests), ignore=("dataset_dir", "eval_dataset_dir")
    )
    plan = Plan(config, ranks.WORLD_SIZE * max(records_per_rank(dataset)))
    with open_run(config, plan, digests, resume) as run:
        if run.finished:
            return log(f"{run.folder} is finished: {run.outcome}")
        device = choose_device(config.device)
        spec = Spec.from_dataset(dataset, config.image_size)
        batch_per_rank = config.batch_size // ranks.WORLD_SIZE
        pipeline = ImagePipeline(
            config.dataset_dir,
            dataset,
            spec,
            batch_per_rank,
            config.shuffle_buffer,
            config.seed,
            config.decoder,
        )
        model = (
            LeNet(spec, config.dropout)
            .init_weights(config.weights, np.random.default_rng(config.seed))
            .to(device)
        )
        make_optimizer = partial(make_adam, config, plan.steps)
        optimizer, schedule = make_optimizer(model.parameters())
        scaler = (
            restore(run, pipeline, model, optimizer, schedule, device) if run.checkpoint else {}
        )
        amp = config.amp and device != "cpu"
        if config.amp and not amp:
            log("amp: mixed precision requires a GPU; using float32 on the CPU", "warning")
        step = (
            GraphStep(model, optimizer, make_optimizer, amp, scaler if amp else {})
            if config.graph
            else EagerStep(model, optimizer)
        )
        describe(dataset, eval_dataset, model, run, amp)

        evaluate_model = partial(
            evaluate,
            model,
            config.eval_dataset_dir or config.dataset_dir,
            eval_dataset or dataset,
            device,
            batch_per_rank,
        )
        train(run, pipeline, step, model, optimizer, schedule, device, evaluate_model)
        step.close()
        if config.picture and ranks.RANK == 0:
            draw_picture(config, dataset, spec, run.losses)


# -- reader and decoders ----------------------------------------------------------


class ImagePipeline(nn.Module):
    """Reads, decodes, resizes and normalizes batches of an OFRecord dataset, on the CPU.

    A call without arguments returns the next batch: images, float32
    (batch_size, channels, height, width), normalized as ``spec`` says; and
    labels, int32 (batch_size,). It never ends: the first record follows the
    last.

    Each rank reads its own parts, ``batch_size`` images at a time. The next
    record is drawn from a buffer of ``shuffle_buffer`` records, at most half of
    the rank's, as a buffer larger than the dataset would hold some records
    twice; 0 reads in order.
    """

    def __init__(
        self,
        folder: str,
        dataset: Manifest,
        spec: Spec,
        batch_size: int,
        shuffle_buffer: int = 0,
        seed: int = 0,
        decoder: str = "auto",
    ) -> None:
        super().__init__()
        color = "GRAY" if spec.channels == 1 else "RGB"
        buffer_size = min(shuffle_buffer, records_per_rank(dataset)[ranks.RANK] // 2)

        self.reader = nn.OFRecordReader(
            folder,
            batch_size=batch_size,
            data_part_num=len(dataset.parts),
            part_name_suffix_length=dataset.part_name_suffix_length,
            random_shuffle=buffer_size > 1,
            shuffle_buffer_size=max(buffer_size, 1),
            random_seed=seed,
        )
        self.label_decoder = nn.OFRecordRawDecoder(
            dataset.label_feature, shape=(1,), dtype=getattr(flow, dataset.label_kind)
        )
        if choose_decoder(decoder, folder, dataset) == "fused":
            self.image_decoder = nn.OFRecordImageDecoder(dataset.image_feature, color_space=color)
        else:
            self.image_decoder = nn.Sequential(
                nn.OFRecordBytesDecoder(dataset.image_feature), nn.image.decode(color_space=color)
            )
        self.resize = nn.image.Resize(target_size=(spec.width, spec.height), channels=spec.channels)
        self.normalize = nn.CropMirrorNormalize(
            color_space=color,
            output_layout="NCHW",
            mean=spec.mean,
            std=spec.scale,
            output_dtype=flow.float,
        )

    def read(self) -> tuple[flow.Tensor, flow.Tensor]:
        """Return the next batch as decoded: uint8 (batch_size, height, width, channels), labels."""
        records = self.reader()
        labels = self.label_decoder(records).reshape(-1).to(flow.int32)
        return self.resize(self.image_decoder(records))[0], labels

    def forward(self) -> tuple[flow.Tensor, flow.Tensor]:
        pixels, labels = self.read()
        return self.normalize(pixels), labels

    def skip(self, batches: int) -> None:
        """Skip so many batches without decoding them, about 450,000 records a second."""
        for _ in range(batches):
            self.reader()


# Width over height of a crop, relative to the image's; the tutorial's range.
CROP_ASPECT = (0.99, 1.0)


def augment(images: flow.Tensor, config: TrainConfig) -> flow.Tensor:
    """Return the images, each cropped, rotated, zoomed and shifted at random.

    ``images`` is float32 (n, channels, height, width), on any device;
    config.crop, rotation, zoom and shift set the limits. It works on decoded
    images of every format, unlike the crop of OneFlow's decoders.
    """
    n, _, frame_height, frame_width = images.shape

    def uniform(low, high):
        return low + (high - low) * flow.rand(n, device=images.device)

    # The window that is cut out: its size as a fraction of the image's, and its centre,
    # in coordinates from -1 to 1.
    width = height = flow.ones(n, device=images.device)
    x = y = flow.zeros(n, device=images.device)
    if config.crop:
        area, aspect = uniform(1 - config.crop, 1.0), uniform(*CROP_ASPECT)
        width = flow.sqrt(area * aspect).clamp(max=1.0)
        height = flow.sqrt(area / aspect).clamp(max=1.0)
        x, y = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)  # inside the image
    if config.zoom:
        width = width * uniform(1 - config.zoom, 1 + config.zoom)
        height = height * uniform(1 - config.zoom, 1 + config.zoom)
    if config.shift:
        x = x + uniform(-2 * config.shift, 2 * config.shift)
        y = y + uniform(-2 * config.shift, 2 * config.shift)
    limit = math.pi / 180 * config.rotation
    angle = uniform(-limit, limit) if config.rotation else 0 * x
    cos, sin, slant = flow.cos(angle), flow.sin(angle), frame_height / frame_width
    theta = flow.stack(
        [width * cos, -width * sin * slant, x, height * sin / slant, height * cos, y], dim=1
    )
    grid = functional.affine_grid(theta.reshape(n, 2, 3), tuple(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


# -- loop -------------------------------------------------------------------------


def train(
    run: Run,
    pipeline: ImagePipeline,
    step: EagerStep | GraphStep,
    model: LeNet,
    optimizer: flow.optim.Optimizer,
    schedule: Any,
    device: str,
    evaluate_model: Callable[..., Evaluation | None],
) -> None:
    """Take the run's remaining steps: train, print the losses, evaluate and save.

    The next batch is decoded while the device computes, and the losses stay on
    the device until those of ``fetch_every`` steps are fetched together, as
    each fetch waits for it. Ctrl-C stops after the next step at which the run
    can be saved; with several ranks, at once. Raises InputError if the loss is
    not finite.
    """
    plan, config = run.plan, run.config
    waiting, learning_rates = [], []
    can_save = bool(run.folder) and ranks.WORLD_SIZE == 1
    with Progress(run) as progress, stop_requests(enabled=can_save) as stop:
        # The run was stopped between a step and its evaluation.
        if plan.evaluates(run.step) and run.step not in run.evaluations:
            end_epoch(run, model, evaluate_model, progress, stop)
        batch = pipeline()
        for number in range(run.step + 1, plan.steps + 1):
            if plan.may_pause(number - 1):
                flow.manual_seed(seed_of(config.seed, number - 1, ranks.RANK))
            learning_rates.append(optimizer.param_groups[0]["lr"])
            images, labels = (each.to(device) for each in batch)
            waiting.append(train_step(step, model, images, labels, config))
            schedule.step()
            batch = pipeline()

            if (
                len(waiting) == config.fetch_every
                or plan.evaluates(number)
                or run.saves(number, stop.asked)
            ):
                run.add_losses(learning_rates, ranks.mean(flow.stack(waiting)).numpy())
                progress.show(len(waiting))
                waiting, learning_rates = [], []
            if plan.evaluates(number):
                step.pull()
                end_epoch(run, model, evaluate_model, progress, stop)
            if not waiting and run.saves(number, stop.asked):
                with progress.timer_paused():
                    step.pull()  # not earlier, as stop may have been asked since
                    run.save(model, optimizer, schedule, step.scaler)
                    if run.writes and (stop.asked or progress.draws(LOSS_PICTURE)):
                        draw_losses(run)
                if stop.asked:
                    raise KeyboardInterrupt
        progress.report()


def train_step(
    step: EagerStep | GraphStep,
    model: LeNet,
    images: flow.Tensor,
    labels: flow.Tensor,
    config: TrainConfig,
) -> flow.Tensor:
    """Update the model's weights once and return the loss, a 0-d tensor on the device."""
    if config.augment and (config.crop or config.rotation or config.zoom or config.shift):
        images = augment(images, config)
    return step(images, labels, model.make_dropout_mask(len(labels)))


def make_adam(config: TrainConfig, steps: int, parameters: Any) -> tuple[flow.optim.Optimizer, Any]:
    """Return the optimizer and its learning rate schedule.

    The learning rate rises linearly during the first fraction ``config.warmup``
    of all ``steps``, then is constant or follows half a cosine.
    """
    optimizer = flow.optim.Adam(parameters, lr=config.learning_rate)
    schedules = flow.optim.lr_scheduler
    if config.schedule == "cosine":
        schedule = schedules.CosineDecayLR(optimizer, decay_steps=steps)
    else:
        schedule = schedules.ConstantLR(optimizer, factor=1.0, total_iters=0)
    warmup_steps = round(config.warmup * steps)
    if warmup_steps:
        schedule = schedules.WarmUpLR(schedule, warmup_factor=0.05, warmup_iters=warmup_steps)
    return optimizer, schedule


def restore(
    run: Run,
    pipeline: ImagePipeline,
    model: LeNet,
    optimizer: flow.optim.Optimizer,
    schedule: Any,
    device: str,
) -> dict[str, flow.Tensor]:
    """Load the run's checkpoint into its objects and return the gradient scaler's state.

    Raises InputError if the checkpoint belongs to a different model.
    """
    if run.checkpoint.spec != model.spec:
        raise InputError(f"cannot resume {run.folder}: its checkpoint is of a different model")
    model.load_state_dict(run.checkpoint.load("model", device))
    training = run.checkpoint.load("training", device)
    optimizer.load_state_dict(training["optimizer"])
    schedule.load_state_dict(training["schedule"])
    pipeline.skip(run.step)
    return training.get("scaler", {})


# -- evaluation and messages ------------------------------------------------------


def describe(
    dataset: Manifest, eval_dataset: Manifest | None, model: LeNet, run: Run, amp: bool
) -> None:
    """Log the datasets, the model and the length of the training."""

    def images_of(dataset):
        images = count(
            dataset.num_records, "gray image" if dataset.channels == 1 else "colour image"
        )
        size = "sizes vary" if dataset.width is None else f"{dataset.width}x{dataset.height}"
        parts = count(len(dataset.parts), "part")
        return f"{images} ({size}) in {parts}"

    config, plan = run.config, run.plan
    decoder = choose_decoder(config.decoder, config.dataset_dir, dataset)
    classes = count(dataset.num_classes, "class")
    log(f"dataset: {images_of(dataset)}, {classes}; {decoder} decoder")
    if eval_dataset:
        log(f"evaluation dataset: {images_of(eval_dataset)}")
    log(f"model: LeNet, {sum(p.numel() for p in model.parameters()):,} parameters")
    steps, epochs = count(plan.steps, "step"), count(plan.epochs, "epoch")
    mode = ", as a graph" if config.graph else ""
    mode += " in mixed precision" if amp else ""
    log(f"training: {steps} of {count(config.batch_size, 'image')}, {epochs}{mode}")
    if ranks.WORLD_SIZE > 1:
        batch_per_rank = config.batch_size // ranks.WORLD_SIZE
        log(f"world size: {ranks.WORLD_SIZE}, batch per rank: {count(batch_per_rank, 'image')}")
    if run.step:
        log(f"resumed after step {run.step:,}")


def end_epoch(
    run: Run,
    model: LeNet,
    evaluate_model: Callable[..., Evaluation | None],
    progress: Progress,
    stop: Any,
) -> None:
    """Evaluate the model, save it if it is the best so far, log the accuracy, draw predictions."""
    with progress.timer_paused():
        evaluation = evaluate_model(stop)
        if evaluation is None:
            return
        run.add_evaluation(evaluation.loss, evaluation.accuracy, model)
        if run.writes and progress.draws(PREDICTIONS_PICTURE):
            draw_predictions(run, model.spec, evaluation)
    accuracy = f"{evaluation.num_correct:,}/{evaluation.num_images:,} ({evaluation.accuracy:.2%})"
    if run.config.eval_dataset_dir is None:
        progress.log(f"training accuracy: {accuracy}")
        return
    progress.log(
        f"epoch {run.plan.epoch_of(run.step)}/{run.plan.epochs}: accuracy {accuracy}, "
        f"loss {evaluation.loss:.4f}, training loss {run.epoch_loss():.4f}"
    )
    if run.finished:
        for line in evaluation.confusion(model.spec):
            progress.log(line)


def evaluate(
    model: LeNet, folder: str, dataset: Manifest, device: str, batch_size: int, stop: Any = None
) -> Evaluation | None:
    """Return the Evaluation of the model on a dataset, every image counted once.

    Each rank evaluates the parts it reads. The reader never ends, so that the
    last batch contains the first records again; those are not counted. Returns
    None if ``stop``, of stop_requests, was asked.
    """
    pipeline = ImagePipeline(folder, dataset, model.spec, batch_size)
    evaluation = Evaluation()
    num_records = records_per_rank(dataset)[ranks.RANK]
    with flow.no_grad():
        for first in range(0, num_records, batch_size):
            pixels, labels = pipeline.read()
            logits = model(pipeline.normalize(pixels).to(device))
            new = slice(num_records - first)
            evaluation.add(pixels.numpy()[new], labels.numpy()[new], logits.numpy()[new])
            if stop and stop.asked:
                return None
    evaluations = ranks.gather(evaluation)
    for other in evaluations[1:]:
        evaluations[0].merge(other)
    return evaluations[0]


def draw_losses(run: Run) -> None:
    from lenet.picture import draw_losses  # matplotlib takes a second to import

    draw_losses(run.path(LOSS_PICTURE), run)


def draw_predictions(run: Run, spec: Spec, evaluation: Evaluation) -> None:
    from lenet.picture import draw_predictions

    draw_predictions(run.path(PREDICTIONS_PICTURE), spec, evaluation)


def draw_picture(
    config: TrainConfig, dataset: Manifest, spec: Spec, losses: Sequence[float]
) -> None:
    """Draw the first images of the dataset, as OneFlow decodes them, beside the losses."""
    from lenet.picture import COLUMNS, ROWS, draw_run

    shown = min(ROWS * COLUMNS, dataset.num_records)
    pixels, labels = ImagePipeline(config.dataset_dir, dataset, spec, shown).read()
    titles = [spec.class_name(label) for label in labels.numpy()]
    try:
        draw_run(config.picture, pixels.numpy(), titles, losses)
    except OSError as error:
        raise InputError(f"cannot write the picture {config.picture}: {error.strerror}") from error
    log(f"picture: {config.picture}")


if __name__ == "__main__":
    run_main(main)
