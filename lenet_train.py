"""Train LeNet on an OFRecord dataset, with OneFlow's own reader and image decoders.

    $ python lenet_train.py
    [7.9320416]
    [8.212606]
    ...
    [0.00461091]

The losses go to stdout, one a step, everything else to stderr. The settings
and their defaults are in configs/lenet.yaml; `--name value` overrides one.
Read main() and train() first: dataset -> reader -> decoders -> LeNet -> loop.
"""

from runtime.environment import check_environment

check_environment(__name__)

from runtime.guard import guard

# Forks: what follows runs in a child process, and the parent reports if OneFlow aborts it.
guard(
    __name__,
    "`python -m ofrecord check DIR` looks for damaged images in a dataset; where a GPU is out of "
    "memory, reduce --batch_size",
)

import numpy as np

from lenet.augment import augment
from lenet.config import TrainConfig, parse_config
from lenet.datasets import check_memory, open_datasets
from lenet.device import choose_device
from lenet.engine import flow
from lenet.evaluation import Evaluation
from lenet.learner import make_learner
from lenet.model import LeNet, ModelSpec, make_dropout_mask
from lenet.ranks import RANK, WORLD_SIZE, merge_over_ranks
from lenet.run import Run, open_run
from ofrecord.dataset import Dataset
from runtime.cli import InputError, count, log, run_main

nn = flow.nn


def main() -> None:
    config, resume = parse_config()
    with open_datasets(config) as (train_set, eval_set):
        with open_run(config, train_set, eval_set, resume) as run:
            if run.finished:
                log(f"{run.folder.path} is finished: {run.outcome()}")
            else:
                train(config, train_set, eval_set, run)


def train(config: TrainConfig, train_set: Dataset, eval_set: Dataset | None, run: Run) -> None:
    """Take the steps that are left: train, print the losses, evaluate, save."""
    device = choose_device(config.device)
    check_memory(config, train_set, device)
    batch_per_rank = config.batch_size // WORLD_SIZE
    spec = ModelSpec.from_dataset(train_set, config.image_size)  # image size, classes, …
    reader = ImageReader(train_set, spec, batch_per_rank, config.shuffle_buffer, config.seed)
    model = LeNet(spec).init_weights(config.init, config.seed).to(device)
    amp = config.amp and device != "cpu"
    learner = make_learner(model, config, run.plan.num_steps, amp)  # op by op, or an nn.Graph
    run.restore(learner, reader)  # as its last checkpoint says, if it is resumed
    describe(config, train_set, eval_set, model, run)

    def evaluate_model() -> None:
        with run.progress.timer_paused():
            trained = learner.model  # an nn.Graph trains a copy: this fetches its weights
            result = evaluate(trained, eval_set or train_set, device, batch_per_rank, run)
            run.log_evaluation(result, trained)

    if run.evaluation_missing():  # it was stopped between its last step and its evaluation
        evaluate_model()
    batch = reader.next_batch()
    for step in run.remaining_steps():
        # New in each step, so that a run can be resumed after any step.
        rng = np.random.default_rng([config.seed, RANK, step])
        images, labels = (tensor.to(device) for tensor in batch)
        mask = make_dropout_mask(rng, batch_per_rank, config.dropout).to(device)
        learning_rate = learner.learning_rate  # of this step
        # Forward, cross-entropy, backward, Adam.
        loss = learner.step(augment(images, config, rng), labels, mask)
        batch = reader.next_batch()  # decoded while the device computes: OneFlow only queues both
        # Every loss is printed; several are fetched at a time, and the labels that were read checked.
        run.log_loss(step, loss, learning_rate)
        if run.plan.should_evaluate(step):
            evaluate_model()
        if run.should_save(step):
            run.save(learner)  # raises KeyboardInterrupt if a stop was requested
    learner.close()  # the end of an nn.Graph waits for the other ranks


# -- reader and decoders ----------------------------------------------------------


class ImageReader:
    """Reads a dataset's parts into batches: read, decode, resize, normalize, on the CPU.

    It never ends: after the last record comes the first again. On several
    ranks each reads its own parts, ``batch_size`` images at a time.
    The next record is drawn from a buffer of ``shuffle_buffer`` records, at most
    half as many as this rank has (a larger one could hold a record twice); 0 keeps the order.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: ModelSpec,
        batch_size: int,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ):
        self.dataset, manifest = dataset, dataset.manifest
        self._unchecked = []  # labels; see check_labels
        color = "GRAY" if spec.channels == 1 else "RGB"
        digits = manifest.digits if manifest.digits > 1 else -1  # 3: part-007; -1: part-7
        buffer_size = min(shuffle_buffer, dataset.records_per_rank(WORLD_SIZE)[RANK] // 2)
        self.reader = nn.OFRecordReader(
            dataset.folder,
            batch_size=batch_size,
            data_part_num=len(manifest.parts),
            part_name_suffix_length=digits,
            random_shuffle=buffer_size > 1,
            shuffle_buffer_size=max(buffer_size, 1),
            random_seed=seed,
        )
        label_type = getattr(flow, manifest.label_type)  # flow.int32 or flow.int64
        label = manifest.label_feature
        self.label_decoder = nn.OFRecordRawDecoder(label, shape=(1,), dtype=label_type)
        if manifest.plain_jpeg:  # the faster decoder, which ends the process at other images
            self.image_decoder = nn.OFRecordImageDecoder(manifest.image_feature, color_space=color)
        else:
            self.image_decoder = nn.Sequential(
                nn.OFRecordBytesDecoder(manifest.image_feature), nn.image.decode(color_space=color)
            )
        size = (spec.width, spec.height)
        self.resize = nn.image.Resize(target_size=size, channels=spec.channels)
        self.normalize = nn.CropMirrorNormalize(  # neither crops nor mirrors here
            color_space=color,
            output_layout="NCHW",
            mean=spec.mean,
            std=spec.scale,
            output_dtype=flow.float,
        )

    def next_pixels(self):
        """Return a batch, resized: uint8 (n, height, width, channels), int32 labels (n,)."""
        records = self.reader()
        labels = self.label_decoder(records).reshape(-1)
        self._unchecked.append(labels)
        pixels = self.resize(self.image_decoder(records))[0]  # [1]: by how much it was scaled
        return pixels, labels.to(flow.int32)

    def next_batch(self):
        """Return the next batch: float32 (n, channels, height, width), int32 labels (n,)."""
        pixels, labels = self.next_pixels()
        return self.normalize(pixels), labels

    def check_labels(self) -> None:
        """Raise InputError where a label that was read is no class: OneFlow trains on it too."""
        labels = flow.cat(self._unchecked).numpy()  # waits until they are read
        self._unchecked = []
        folder, num_classes = self.dataset.folder, self.dataset.manifest.num_classes
        wrong = labels[(labels < 0) | (labels >= num_classes)]
        if wrong.size:
            raise InputError(
                f"{folder} has {count(num_classes, 'class')} and a record with label {wrong[0]}: "
                f"`python -m ofrecord check {folder}` finds all such records"
            )

    def skip(self, num_batches: int) -> None:
        """Skip batches without decoding them: about 450,000 records a second."""
        for _ in range(num_batches):
            self.reader()


# -- evaluation ---------------------------------------------------------------------


def evaluate(
    model: LeNet, dataset: Dataset, device: str, batch_size: int, run: Run | None = None
) -> Evaluation | None:
    """Return how good a model is on a dataset, each image counted once.

    A reader never ends, so the last batch runs on into the first records again;
    those are not counted. Each rank evaluates its parts. None where ``run`` is to stop,
    on all ranks then.
    """
    reader = ImageReader(dataset, model.spec, batch_size)
    evaluation = Evaluation()
    num_records = dataset.records_per_rank(WORLD_SIZE)[RANK]
    with flow.no_grad():
        for first in range(0, num_records, batch_size):
            pixels, labels = reader.next_pixels()
            reader.check_labels()
            logits = model(reader.normalize(pixels).to(device))  # without a mask: no dropout
            once = slice(num_records - first)  # without the records that come again
            evaluation.add(pixels.numpy()[once], labels.numpy()[once], logits.numpy()[once])
            if run and run.should_stop():
                return None
    return merge_over_ranks(evaluation)


def describe(
    config: TrainConfig, train_set: Dataset, eval_set: Dataset | None, model: LeNet, run: Run
) -> None:
    """Log what is trained on what."""
    for name, dataset in (("dataset", train_set), ("evaluation dataset", eval_set)):
        if dataset:
            manifest = dataset.manifest
            size = f"{manifest.width}x{manifest.height}" if manifest.width else "sizes vary"
            images = count(manifest.num_records, f"{manifest.color_name} image")
            parts = count(len(manifest.parts), "part")
            log(f"{name}: {images} ({size}) in {parts}, {manifest.num_classes:,} classes")
    log(f"model: LeNet, {sum(p.numel() for p in model.parameters()):,} parameters")
    plan = run.plan
    steps, epochs = count(plan.num_steps, "step"), count(plan.num_epochs, "epoch")
    batch = count(config.batch_size, "image")
    log(f"training: {steps} of {batch}, {epochs}, {run.execution_mode}")
    if WORLD_SIZE > 1:
        batch = count(config.batch_size // WORLD_SIZE, "image")
        log(f"world size: {WORLD_SIZE}, batch per rank: {batch}")


if __name__ == "__main__":
    run_main(main)
