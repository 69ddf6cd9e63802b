"""Train LeNet on an OFRecord dataset, with OneFlow's own reader and image decoders.

    $ python lenet_train.py
    [7.9320416]
    [8.212606]
    ...
    [0.00461091]

The losses go to stdout, one a step, everything else to stderr. The settings
and their defaults are in configs/lenet.yaml; `--name value` overrides one.
Data flow from top to bottom: records -> ImageReader -> LeNet -> train() -> evaluate().
"""

from runtime.environment import check_environment

check_environment(__name__, ranks=True)

import numpy as np

from lenet.augment import augment
from lenet.config import TrainConfig, parse_config
from lenet.datasets import open_datasets
from lenet.device import choose_device
from lenet.engine import flow
from lenet.evaluation import Evaluation
from lenet.learner import make_learner
from lenet.ranks import RANK, WORLD_SIZE, merge_over_ranks
from lenet.resume import open_run
from lenet.run import Run
from lenet.spec import ModelSpec, init_weights, make_dropout_mask
from ofrecord.dataset.open_dataset import Dataset
from runtime.cli import run_main

nn = flow.nn
relu, max_pool2d = nn.functional.relu, nn.functional.max_pool2d


class ImageReader:
    """Reads a dataset's parts into batches: read, decode, resize, normalize, on the CPU.

    It never ends: after the last record comes the first again. On several ranks each
    reads its own parts, ``batch_size`` images at a time. The next record is drawn from a
    buffer of ``shuffle_buffer`` records, at most half as many as this rank has (a larger
    one could hold a record twice); 0 keeps the order.
    """

    def __init__(
        self, dataset: Dataset, spec: ModelSpec, batch_size: int, shuffle_buffer=0, seed=0
    ):
        manifest, color = dataset.manifest, "GRAY" if spec.channels == 1 else "RGB"
        buffer_size = min(shuffle_buffer, dataset.records_per_rank(WORLD_SIZE)[RANK] // 2)
        self.reader = nn.OFRecordReader(
            dataset.folder,
            batch_size=batch_size,
            data_part_num=len(manifest.parts),
            part_name_suffix_length=manifest.digits if manifest.digits > 1 else -1,  # -1: part-7
            random_shuffle=buffer_size > 1,
            shuffle_buffer_size=max(buffer_size, 1),
            random_seed=seed,
        )
        label_type = getattr(flow, manifest.label_type)  # flow.int32 or flow.int64
        self.label_decoder = nn.OFRecordRawDecoder(
            manifest.label_feature, shape=(1,), dtype=label_type
        )
        if manifest.plain_jpeg:  # the faster decoder, which ends the process at other images
            self.image_decoder = nn.OFRecordImageDecoder(manifest.image_feature, color_space=color)
        else:
            self.image_decoder = nn.Sequential(
                nn.OFRecordBytesDecoder(manifest.image_feature), nn.image.decode(color_space=color)
            )
        size = spec.width, spec.height
        self.resize = nn.image.Resize(target_size=size, channels=spec.channels)
        self.normalize = nn.CropMirrorNormalize(  # neither crops nor mirrors here
            color_space=color, output_layout="NCHW", mean=spec.mean, std=spec.scale
        )

    def next_pixels(self):
        """Return a batch, resized: uint8 (n, height, width, channels), int32 labels (n,)."""
        records = self.reader()
        labels = self.label_decoder(records).reshape(-1)
        pixels = self.resize(self.image_decoder(records))[0]  # [1]: by how much it was scaled
        return pixels, labels.to(flow.int32)

    def next_batch(self):
        """Return the next batch: float32 (n, channels, height, width), int32 labels (n,)."""
        pixels, labels = self.next_pixels()
        return self.normalize(pixels), labels

    def skip(self, num_batches: int) -> None:
        """Skip batches without decoding them: about 450,000 records a second."""
        for _ in range(num_batches):
            self.reader()


class LeNet(nn.Module):
    """The tutorial's LeNet, for images of any size from 4x4 and any number of classes."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        # Padding 2 keeps the size ("SAME"); each pooling halves it.
        self.conv1 = nn.Conv2d(spec.channels, 32, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.dense1 = nn.Linear(64 * (spec.height // 4) * (spec.width // 4), 512)
        self.dense2 = nn.Linear(512, spec.num_classes)

    def forward(self, images, dropout_mask=None):
        """Return logits, float32 (n, num_classes); ``dropout_mask`` is for training."""
        # Shapes for 28x28 gray images:                            (n, 1, 28, 28)
        x = max_pool2d(relu(self.conv1(images)), 2, stride=2)  # (n, 32, 14, 14)
        x = max_pool2d(relu(self.conv2(x)), 2, stride=2)  # (n, 64, 7, 7)
        x = relu(self.dense1(x.flatten(1)))  # (n, 512)
        return self.dense2(x if dropout_mask is None else x * dropout_mask)  # (n, 10)


def train(config: TrainConfig, train_set: Dataset, eval_set: Dataset | None, run: Run) -> None:
    """Take the steps that are left: train, print the losses, evaluate, save."""
    device = choose_device(config.device)
    batch_size = config.batch_size // WORLD_SIZE  # of this rank
    spec = ModelSpec.from_dataset(train_set, config.image_size)  # image size, classes, …
    reader = ImageReader(train_set, spec, batch_size, config.shuffle_buffer, config.seed)
    reader.skip(run.saved)  # what a resumed run has seen
    model = LeNet(spec)
    init_weights(model, config.init, config.seed)
    # Loss, backward and Adam, op by op or as an nn.Graph; in the checkpoint's state, if there is one.
    learner = make_learner(model.to(device), config, run.plan.num_steps, run.checkpoint)
    run.start(learner)
    if run.evaluation_missing():  # it was stopped between a step and its evaluation
        run.log_evaluation(
            evaluate(learner.model, eval_set or train_set, device, batch_size), learner
        )
    batch = reader.next_batch()
    for step in run.remaining_steps():
        # New in each step, so that a run can be resumed after any step.
        rng = np.random.default_rng([config.seed, RANK, step])
        images, labels = (tensor.to(device) for tensor in batch)
        mask = make_dropout_mask(rng, batch_size, config.dropout).to(device)
        loss = learner.step(augment(images, config, rng), labels, mask)
        batch = reader.next_batch()  # decoded while the device computes: OneFlow only queues both
        run.log_loss(step, loss, learner.learning_rate)
        if run.should_save(step):  # now and then, and before each evaluation, which may fail
            run.save(learner)
        if run.plan.should_evaluate(step):
            evaluation = evaluate(learner.model, eval_set or train_set, device, batch_size)
            run.log_evaluation(evaluation, learner)  # saves too
    learner.close()  # the end of an nn.Graph waits for the other ranks


def evaluate(model: LeNet, dataset: Dataset, device: str, batch_size: int) -> Evaluation:
    """Return how good a model is on a dataset, each image counted once.

    A reader never ends, so the last batch runs on into the first records again;
    those are not counted. Each rank evaluates its parts.
    """
    reader = ImageReader(dataset, model.spec, batch_size)
    records = dataset.records_per_rank(WORLD_SIZE)
    evaluation, num_records = Evaluation(first=sum(records[:RANK])), records[RANK]
    with flow.no_grad():
        for first in range(0, num_records, batch_size):
            pixels, labels = reader.next_pixels()
            logits = model(reader.normalize(pixels).to(device))  # without a mask: no dropout
            once = slice(num_records - first)  # without the records that come again
            evaluation.add(pixels.numpy()[once], labels.numpy()[once], logits.numpy()[once])
    return merge_over_ranks(evaluation)


def main() -> None:
    config, resume = parse_config()
    with open_datasets(config) as (train_set, eval_set):
        with open_run(config, train_set, eval_set, resume) as run:
            if run.finished:
                run.report_finished()
            else:
                train(config, train_set, eval_set, run)


if __name__ == "__main__":
    run_main(main)
