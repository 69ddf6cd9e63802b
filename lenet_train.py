"""Train LeNet on an OFRecord dataset, with OneFlow's own reader and image decoders.

    $ python lenet_train.py
    [7.363248]
    [7.435774]
    ...
    [0.00111472]

The losses go to stdout, one a step, everything else to stderr. What can be
set, and what it is by default, stands in configs/lenet.yaml; `--name value`
overrides it. Read main() first: dataset -> reader -> decoders -> LeNet -> loop.
"""

from ofrecord.environment import check_environment

check_environment(__name__)

from lenet.guard import guard

guard(__name__)

import math
import os
import re
from functools import partial

import numpy as np

from lenet import ranks
from lenet.config import parse_config
from lenet.device import choose_device
from lenet.engine import flow
from lenet.evaluation import Evaluation
from lenet.model import LeNet, Spec
from lenet.progress import Progress
from lenet.run import LOSS_PICTURE, PREDICTIONS_PICTURE, Plan, open_run, plain, seed_of
from lenet.step import EagerStep, GraphStep
from ofrecord.cli import InputError, become_rank, run, some, stop_requests, talk
from ofrecord.scan import open_dataset
from ofrecord.staging import dataset_in_use

nn = flow.nn
functional = flow.nn.functional


def main():
    become_rank(ranks.RANK, ranks.WORLD_SIZE)
    config, resume = parse_config()
    with dataset_in_use(config.dataset_dir), dataset_in_use(config.eval_dataset_dir):
        run_training(config, resume)


def run_training(config, resume):
    dataset, eval_dataset = (
        folder and open_dataset(folder, config.image_feature, config.label_feature, config.check_hashes or None)
        for folder in (config.dataset_dir, config.eval_dataset_dir))
    check_fit(config, dataset, eval_dataset)
    digests = {"dataset": dataset.digest, "eval_dataset": eval_dataset and eval_dataset.digest}
    ranks.agree(dict(plain(config), **digests), but=("dataset_dir", "eval_dataset_dir"))  # each machine may have its own copy
    plan = Plan(config, ranks.WORLD_SIZE * max(ranks.share_records(dataset)))
    with open_run(config, plan, digests, resume) as run:
        if run.finished:
            return talk("{} is finished: {}".format(run.folder, run.outcome))
        device = choose_device(config.device)
        spec = Spec.of(dataset, config.image_size)
        share = config.batch_size // ranks.WORLD_SIZE  # of a batch, that this rank takes
        pipeline = ImagePipeline(config.dataset_dir, dataset, spec, share, config.shuffle_buffer, config.seed, config.decoder)
        model = LeNet(spec, config.dropout).draw_weights(config.weights, np.random.default_rng(config.seed)).to(device)
        make_optimizer = partial(make_adam, config, plan.steps)
        optimizer, schedule = make_optimizer(model.parameters())
        scaler = restore(run, pipeline, model, optimizer, schedule, device) if run.checkpoint else {}
        amp = config.amp and device != "cpu"
        if config.amp and not amp:
            talk("amp: mixed precision is for GPUs; computing in float32 on the CPU", "warning")
        step = (GraphStep(model, optimizer, make_optimizer, amp, scaler if amp else {}) if config.graph
                else EagerStep(model, optimizer))
        describe(dataset, eval_dataset, model, run, amp)

        judge = partial(evaluate, model, config.eval_dataset_dir or config.dataset_dir, eval_dataset or dataset, device,
                        share)
        train(run, pipeline, step, model, optimizer, schedule, device, judge)
        step.close()
        if config.picture and ranks.RANK == 0:
            draw_picture(config, dataset, spec, run.losses)


def check_fit(config, dataset, eval_dataset):
    """Can this dataset be trained on as configured, in this machine's memory? Raises InputError."""
    if config.batch_size > dataset.records:
        raise InputError("batch_size {} is larger than the dataset: {} has {} images"
                         .format(config.batch_size, config.dataset_dir, dataset.records))
    for folder, each in ((config.dataset_dir, dataset), (config.eval_dataset_dir, eval_dataset)):
        if each and each.width is None and config.image_size is None:
            raise InputError("the images in {} differ in size: say what to resize them to with --image_size"
                             .format(folder))
    width, height = (config.image_size or dataset.width), (config.image_size or dataset.height)
    if min(width, height) < 4:
        raise InputError("images of {}x{} are too small for LeNet, which halves them twice: "
                         "resize them to 4 at least with --image_size".format(width, height))
    parameters = 512 * (64 * (width // 4) * (height // 4) + dataset.classes)
    activations = config.batch_size * width * height * (32 + 64 // 4)  # what both convolutions put out
    # In float32: each weight with its gradient and Adam's two moments; each output again after ReLU, and both's gradients.
    needed = 16 * (parameters + activations)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * memory:
        raise InputError("LeNet for images of {}x{} and {:,} classes, in batches of {}, needs about {:,.0f} GB and this "
                         "machine has {:,.0f}: try a smaller --image_size".format(
                             width, height, dataset.classes, config.batch_size, needed / 1e9, memory / 1e9))
    choose_decoder(config.decoder, config.dataset_dir, dataset)
    ranks.check_shares(config, dataset, eval_dataset)
    if config.picture and not (re.search(r"[^/]\.png\Z", config.picture)
                               and os.path.isdir(os.path.dirname(config.picture) or ".")):
        raise InputError("picture {}: it must be a .png file in a folder that exists".format(config.picture))
    if eval_dataset:
        check_same_kind(config, dataset, eval_dataset)


def check_same_kind(config, dataset, eval_dataset):
    """Can a model trained on the one dataset be evaluated on the other? Raises InputError."""
    def differ(what, train_value, eval_value):
        raise InputError("{} and {} do not fit together: {} {} and {}".format(
            config.dataset_dir, config.eval_dataset_dir, what, train_value, eval_value))
    if dataset.channels != eval_dataset.channels:
        kinds = {1: "gray", 3: "colour"}
        differ("their images are", kinds[dataset.channels], kinds[eval_dataset.channels])
    if config.image_size is None and (dataset.width, dataset.height) != (eval_dataset.width, eval_dataset.height):
        differ("their images (without --image_size) are",
               *("{}x{}".format(each.width, each.height) for each in (dataset, eval_dataset)))
    if dataset.halves and eval_dataset.halves and dataset.halves != eval_dataset.halves:
        raise InputError("{} and {} do not come from the same --val_share: images may be in both; convert again".format(
            config.dataset_dir, config.eval_dataset_dir))
    if dataset.class_names != eval_dataset.class_names:
        differ("their classes are", *(some(each.class_names or ["only numbers"]) for each in (dataset, eval_dataset)))
    if eval_dataset.classes > dataset.classes:
        differ("their numbers of classes are", dataset.classes, eval_dataset.classes)


# -- reader and decoders ----------------------------------------------------------

class ImagePipeline(nn.Module):
    """OFRecord parts in, batches out: read, decode, resize, normalise. All of it on the CPU.

    Called without arguments it returns the next batch: images, float32
    (batch_size, channels, height, width), normalised as ``spec`` says; and
    labels, int32 (batch_size,). It never ends: after the last record comes
    the first again.

    On several ranks each reads its share of the parts, ``batch_size`` images
    at a time. ``shuffle_buffer`` records are held to draw the next one from,
    and half of the share at most, as a buffer that is larger than it would
    hold some records twice; 0 reads in order.
    """

    def __init__(self, folder, dataset, spec, batch_size, shuffle_buffer=0, seed=0, decoder="auto"):
        super().__init__()
        color = "GRAY" if spec.channels == 1 else "RGB"
        buffer_size = min(shuffle_buffer, ranks.share_records(dataset)[ranks.RANK] // 2)

        self.reader = nn.OFRecordReader(
            folder,
            batch_size=batch_size,
            data_part_num=len(dataset.parts),
            part_name_suffix_length=dataset.part_name_suffix_length,
            random_shuffle=buffer_size > 1,
            shuffle_buffer_size=max(buffer_size, 1),
            random_seed=seed,
        )
        self.label_decoder = nn.OFRecordRawDecoder(dataset.label_feature, shape=(1,), dtype=getattr(flow, dataset.label_kind))
        if choose_decoder(decoder, folder, dataset) == "fused":
            self.image_decoder = nn.OFRecordImageDecoder(dataset.image_feature, color_space=color)
        else:
            self.image_decoder = nn.Sequential(
                nn.OFRecordBytesDecoder(dataset.image_feature), nn.image.decode(color_space=color))
        self.resize = nn.image.Resize(target_size=(spec.width, spec.height), channels=spec.channels)
        self.normalize = nn.CropMirrorNormalize(
            color_space=color,
            output_layout="NCHW",
            mean=spec.mean,
            std=spec.std,
            output_dtype=flow.float,
        )

    def read(self):
        """The next batch as decoded: pixels, uint8 (batch_size, height, width, channels), and labels."""
        records = self.reader()
        labels = self.label_decoder(records).reshape(-1).to(flow.int32)
        return self.resize(self.image_decoder(records))[0], labels

    def forward(self):
        pixels, labels = self.read()
        return self.normalize(pixels), labels

    def skip(self, batches):
        """Go on as if so many batches had been read. Nothing is decoded: about 450,000 records a second."""
        for _ in range(batches):
            self.reader()


def choose_decoder(wish, folder, dataset):
    """``"fused"`` or ``"bytes"``, for the config's ``auto``, ``fused`` or ``bytes``.

    Since OneFlow 0.7 the fused decoder hands every image to libjpeg, which
    ends the process at the first PNG; gray, CMYK and rotated JPEGs it gets
    wrong. Raises InputError where it is asked for and would.
    """
    if wish == "fused" and not dataset.suits_fused_decoder:
        raise InputError("decoder fused: OneFlow's fused decoder would end the process, or misread, {}, which are not all "
                         "plain 3-channel JPEG; decoder bytes reads them".format(folder))
    return "fused" if wish != "bytes" and dataset.suits_fused_decoder else "bytes"


def augment(images, config):
    """Vary each image at random: crop it, turn it, stretch it, move it, and fill the frame again.

    ``images``: float32 (n, channels, height, width), on any device. By how
    much, config.crop, rotation, zoom and shift say. It works on decoded
    images, so for every format, which the decoders' own crop does not.
    """
    n, _, frame_height, frame_width = images.shape

    def uniform(low, high):
        return low + (high - low) * flow.rand(n, device=images.device)
    width = height = flow.ones(n, device=images.device)  # of the window that is cut out, as shares of the image's
    x = y = flow.zeros(n, device=images.device)  # its centre; the image spans -1 to 1
    if config.crop:
        area, aspect = uniform(1 - config.crop, 1.0), uniform(*CROP_ASPECT)
        width, height = flow.sqrt(area * aspect).clamp(max=1.0), flow.sqrt(area / aspect).clamp(max=1.0)
        x, y = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)  # it stays inside
    if config.zoom:
        width, height = width * uniform(1 - config.zoom, 1 + config.zoom), height * uniform(1 - config.zoom, 1 + config.zoom)
    if config.shift:
        x, y = x + uniform(-2 * config.shift, 2 * config.shift), y + uniform(-2 * config.shift, 2 * config.shift)
    angle = uniform(-math.pi / 180 * config.rotation, math.pi / 180 * config.rotation) if config.rotation else 0 * x
    cos, sin, slant = flow.cos(angle), flow.sin(angle), frame_height / frame_width
    theta = flow.stack([width * cos, -width * sin * slant, x, height * sin / slant, height * cos, y], dim=1)
    grid = functional.affine_grid(theta.reshape(n, 2, 3), tuple(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


CROP_ASPECT = (0.99, 1.0)  # width over height of what is cut out, relative to the image's; the tutorial's


# -- loop -------------------------------------------------------------------------

def train(run, pipeline, step, model, optimizer, schedule, device, judge):
    """Take the steps that are left: train, print the losses, evaluate, save; see Run and Plan.

    The device is kept busy: the next batch is decoded while it computes, and
    the losses stay on it and are fetched ``fetch_every`` steps together, since
    each fetch waits for it. Ctrl-C stops at the next step after which the run
    can be saved; several ranks it stops at once. Raises InputError where the
    loss is no longer a number.
    """
    plan, config = run.plan, run.config
    waiting, learning_rates = [], []
    with Progress(run) as progress, stop_requests(enabled=bool(run.folder) and ranks.WORLD_SIZE == 1) as stop:
        if plan.evaluates(run.step) and run.step not in run.evaluations:  # it was stopped there
            end_epoch(run, model, judge, progress, stop)
        batch = pipeline()
        for number in range(run.step + 1, plan.steps + 1):
            if plan.may_pause(number - 1):
                flow.manual_seed(seed_of(config.seed, number - 1, ranks.RANK))
            learning_rates.append(optimizer.param_groups[0]["lr"])
            images, labels = (each.to(device) for each in batch)
            waiting.append(train_step(step, model, images, labels, config))
            schedule.step()
            batch = pipeline()

            if len(waiting) == config.fetch_every or plan.evaluates(number) or run.saves(number, stop.asked):
                run.add_losses(learning_rates, ranks.mean(flow.stack(waiting)).numpy())
                progress.show(len(waiting))
                waiting, learning_rates = [], []
            if plan.evaluates(number):
                step.pull()
                end_epoch(run, model, judge, progress, stop)
            if not waiting and run.saves(number, stop.asked):
                with progress.aside():
                    step.pull()  # here, as Ctrl-C may have come since the last look
                    run.save(model, optimizer, schedule, step.scaler)
                    if run.writes and (stop.asked or progress.draws(LOSS_PICTURE)):
                        draw_losses(run)
                if stop.asked:
                    raise KeyboardInterrupt
        progress.report()


def train_step(step, model, images, labels, config):
    """One update of the model's weights; returns the loss, a 0-d tensor that is still on the device."""
    if config.augment and (config.crop or config.rotation or config.zoom or config.shift):
        images = augment(images, config)
    return step(images, labels, model.draw_dropout(len(labels)))


def make_adam(config, steps, parameters):
    """The optimizer and its schedule.

    The learning rate over all ``steps``: after a linear rise in the first
    ``config.warmup`` of them constant, or half a cosine.
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


def restore(run, pipeline, model, optimizer, schedule, device):
    """Make all of them as they were when the run was saved; returns the gradient scaler's state.

    Raises InputError for another model's checkpoint.
    """
    if run.checkpoint.spec != model.spec:
        raise InputError("cannot resume {}: its checkpoint is of another model".format(run.folder))
    model.load_state_dict(run.checkpoint.load("model", device))
    training = run.checkpoint.load("training", device)
    optimizer.load_state_dict(training["optimizer"])
    schedule.load_state_dict(training["schedule"])
    pipeline.skip(run.step)
    return training.get("scaler", {})


# -- what it came to --------------------------------------------------------------

def describe(dataset, eval_dataset, model, run, amp):
    def images_of(dataset):
        size = "sizes vary" if dataset.width is None else "{}x{}".format(dataset.width, dataset.height)
        return "{:,} {} images ({}) in {} parts".format(
            dataset.records, "gray" if dataset.channels == 1 else "colour", size, len(dataset.parts))
    talk("dataset: {}, {} classes; {} decoder".format(
        images_of(dataset), dataset.classes, choose_decoder(run.config.decoder, run.config.dataset_dir, dataset)))
    if eval_dataset:
        talk("evaluated on: {}".format(images_of(eval_dataset)))
    talk("model: LeNet, {:,} parameters".format(sum(p.numel() for p in model.parameters())))
    talk("training: {:,} steps of {} images, {} epoch{}".format(
        run.plan.steps, run.config.batch_size, run.plan.epochs, "s" if run.plan.epochs > 1 else "") +
        (", as a graph" + (" in mixed precision" if amp else "") if run.config.graph else ""))
    if ranks.WORLD_SIZE > 1:
        talk("ranks: {}, each takes {} images of a step's {}".format(
            ranks.WORLD_SIZE, run.config.batch_size // ranks.WORLD_SIZE, run.config.batch_size))
    if run.step:
        talk("resumed: {:,} steps were taken before".format(run.step))


def end_epoch(run, model, judge, progress, stop):
    """Evaluate the model, keep it where it is the best so far, and say and draw what it can do."""
    with progress.aside():
        evaluation = judge(stop)
        if evaluation is None:
            return
        run.add_evaluation(evaluation.loss, evaluation.accuracy, model)
        if run.writes and progress.draws(PREDICTIONS_PICTURE):
            draw_predictions(run, model.spec, evaluation)
    if run.config.eval_dataset_dir is None:
        progress.talk("the trained model gets {} of {} training images right ({:.2%})"
                      .format(evaluation.right, evaluation.count, evaluation.accuracy))
        return
    progress.talk("epoch {} of {}: {:,} of {:,} right ({:.2%}), loss {:.4f}; training loss {:.4f}".format(
        run.plan.epoch_of(run.step), run.plan.epochs, evaluation.right, evaluation.count, evaluation.accuracy,
        evaluation.loss, run.epoch_loss()))
    if run.finished:
        for line in evaluation.confusion(model.spec):
            progress.talk(line)


def evaluate(model, folder, dataset, device, batch_size, stop=None):
    """What the model says of every image of a dataset, each counted once. Returns an Evaluation.

    A reader knows no end, so the last batch runs on into the first records
    again; those are left out. Each rank does its share. None where ``stop``,
    of stop_requests, was asked.
    """
    pipeline = ImagePipeline(folder, dataset, model.spec, batch_size)
    evaluation = Evaluation()
    records = ranks.share_records(dataset)[ranks.RANK]
    with flow.no_grad():
        for first in range(0, records, batch_size):
            pixels, labels = pipeline.read()
            logits = model(pipeline.normalize(pixels).to(device))
            new = slice(records - first)
            evaluation.add(pixels.numpy()[new], labels.numpy()[new], logits.numpy()[new])
            if stop and stop.asked:
                return None
    evaluations = ranks.gather(evaluation)
    for other in evaluations[1:]:
        evaluations[0].merge(other)
    return evaluations[0]


def draw_losses(run):
    from lenet.picture import draw_losses  # matplotlib takes a second to import

    draw_losses(run.path(LOSS_PICTURE), run)


def draw_predictions(run, spec, evaluation):
    from lenet.picture import draw_predictions

    draw_predictions(run.path(PREDICTIONS_PICTURE), spec, evaluation)


def draw_picture(config, dataset, spec, losses):
    """Draw the first images of the dataset, as OneFlow decodes them, beside the losses."""
    from lenet.picture import COLUMNS, ROWS, draw_run

    shown = min(ROWS * COLUMNS, dataset.records)
    pixels, labels = ImagePipeline(config.dataset_dir, dataset, spec, shown).read()
    try:
        draw_run(config.picture, pixels.numpy(), [spec.name(label) for label in labels.numpy()], losses)
    except OSError as error:
        raise InputError("cannot write the picture {}: {}".format(config.picture, error.strerror))
    talk("picture: {}".format(config.picture))


if __name__ == "__main__":
    run(main)
