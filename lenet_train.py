"""Train LeNet on an OFRecord dataset, with OneFlow's own reader and image decoders.

    $ python lenet_train.py
    [7.36445]
    [8.757951]
    ...
    [0.00401579]

The losses go to stdout, one a step, everything else to stderr. What can be
set, and what it is by default, stands in configs/lenet.yaml; `--name value`
overrides it. Read main() first: dataset -> reader -> decoders -> LeNet -> loop.
"""

from ofrecord.environment import check_environment

check_environment(__name__)

import math
import os
import re
import time

import numpy as np
from tqdm import tqdm

from lenet.config import parse_config
from lenet.device import choose_device
from lenet.engine import flow
from ofrecord.cli import InputError, run, say, talk
from ofrecord.manifest import check_dataset
from ofrecord.record import IMAGE_FEATURE, LABEL_FEATURE
from ofrecord.staging import dataset_in_use

nn = flow.nn
functional = flow.nn.functional


def main():
    config = parse_config()
    with dataset_in_use(config.dataset_dir):
        run_training(config, check_dataset(config.dataset_dir))


def run_training(config, dataset):
    check_fit(config, dataset)
    device = choose_device(config.device)
    flow.manual_seed(config.seed)

    pipeline = ImagePipeline(config, dataset, config.batch_size, shuffle_buffer=config.shuffle_buffer)
    model = LeNet(pipeline.shape, dataset.classes, config.dropout, np.random.default_rng(config.seed)).to(device)
    optimizer = flow.optim.Adam(model.parameters(), lr=config.learning_rate)
    describe(dataset, model)

    losses = train(model, pipeline, optimizer, device, config)
    report_accuracy(model, dataset, device, config)
    if config.picture:
        draw_picture(config, dataset, losses)


def check_fit(config, dataset):
    """Can this dataset be trained on as configured, in this machine's memory? Raises InputError."""
    if config.batch_size > dataset.records:
        raise InputError("batch_size {} is larger than the dataset: {} has {} images"
                         .format(config.batch_size, config.dataset_dir, dataset.records))
    if dataset.width is None and config.image_size is None:
        raise InputError("the images in {} differ in size: say what to resize them to with --image_size"
                         .format(config.dataset_dir))
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
    if config.picture and not (re.search(r"[^/]\.png\Z", config.picture)
                               and os.path.isdir(os.path.dirname(config.picture) or ".")):
        raise InputError("picture {}: it must be a .png file in a folder that exists".format(config.picture))


# -- reader and decoders ----------------------------------------------------------

# Of the pixels that the network sees. The tutorial's weights (sigma 0.1 in every
# layer) start best a little below the usual 1: first losses of about 7, not 14.
PIXEL_STD = 0.5


class ImagePipeline(nn.Module):
    """OFRecord parts in, batches out: read, decode, resize, normalise. All of it on the CPU.

    Called without arguments it returns the next batch: images, float32
    (batch_size, channels, height, width), of mean 0 and standard deviation
    PIXEL_STD over the dataset; and labels, int32 (batch_size,). It never ends:
    after the last record comes the first again.

    ``shuffle_buffer`` records are held to draw the next one from, and half of
    the dataset at most, as a buffer that is larger than the dataset would hold
    some records twice; 0 reads in order.
    """

    def __init__(self, config, dataset, batch_size, shuffle_buffer):
        super().__init__()
        color = "GRAY" if dataset.channels == 1 else "RGB"
        width, height = (config.image_size or dataset.width), (config.image_size or dataset.height)
        buffer_size = min(shuffle_buffer, dataset.records // 2)
        self.shape = (dataset.channels, height, width)

        self.reader = nn.OFRecordReader(
            config.dataset_dir,
            batch_size=batch_size,
            data_part_num=len(dataset.parts),
            part_name_suffix_length=dataset.part_name_suffix_length,
            random_shuffle=buffer_size > 1,
            shuffle_buffer_size=max(buffer_size, 1),
            random_seed=config.seed,
        )
        self.label_decoder = nn.OFRecordRawDecoder(LABEL_FEATURE, shape=(1,), dtype=flow.int32)
        # Not nn.OFRecordImageDecoder: since OneFlow 0.7 it hands every image to
        # libjpeg, which ends the process at the first PNG.
        self.bytes_decoder = nn.OFRecordBytesDecoder(IMAGE_FEATURE)
        self.image_decoder = nn.image.decode(color_space=color)
        self.resize = nn.image.Resize(target_size=(width, height), channels=dataset.channels)
        self.normalize = nn.CropMirrorNormalize(
            color_space=color,
            output_layout="NCHW",
            mean=dataset.mean,
            std=[max(std, 1.0) / PIXEL_STD for std in dataset.std],  # images of one flat colour have none
            output_dtype=flow.float,
        )

    def read(self):
        """The next batch as decoded: pixels, uint8 (batch_size, height, width, channels), and labels."""
        records = self.reader()
        labels = self.label_decoder(records).reshape(-1)
        images = self.image_decoder(self.bytes_decoder(records))
        return self.resize(images)[0], labels

    def forward(self):
        pixels, labels = self.read()
        return self.normalize(pixels), labels


def random_crop(images, area=(0.95, 1.0), aspect=(0.99, 1.0)):
    """Cut a random window out of each image and stretch it to the full size again.

    ``images``: float32 (n, channels, height, width), on any device. ``area``:
    the window's share of the image; ``aspect``: its width over its height,
    relative to the image's. Both ranges are the tutorial's. It works on
    decoded images, so for every format, which the decoders' own crop does not.
    """
    n, device = len(images), images.device
    u = flow.rand(4, n, device=device)
    areas = area[0] + (area[1] - area[0]) * u[0]
    aspects = aspect[0] + (aspect[1] - aspect[0]) * u[1]
    width = flow.sqrt(areas * aspects).clamp(max=1.0)  # shares of the image's
    height = flow.sqrt(areas / aspects).clamp(max=1.0)
    left_right = (1 - width) * (2 * u[2] - 1)  # the window's centre; the image spans -1 to 1
    up_down = (1 - height) * (2 * u[3] - 1)
    zero = flow.zeros(n, device=device)
    theta = flow.stack([width, zero, left_right, zero, height, up_down], dim=1).reshape(n, 2, 3)
    grid = functional.affine_grid(theta, tuple(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


# -- LeNet ------------------------------------------------------------------------

class LeNet(nn.Module):
    """The tutorial's LeNet, for images of any size from 4x4 and any number of classes.

    ``shape`` is (channels, height, width); ``rng`` a numpy Generator that the
    weights are drawn from, the same on every device. 28x28 gray images and
    10 classes make 1,663,370 parameters.
    """

    def __init__(self, shape, classes, dropout, rng):
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 32, kernel_size=5, padding=2)  # padding 2 keeps the size ("SAME")
        self.conv2 = nn.Conv2d(32, 64, kernel_size=5, padding=2)
        self.dense1 = nn.Linear(64 * (height // 4) * (width // 4), 512)
        self.dense2 = nn.Linear(512, classes)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.conv1, self.conv2, self.dense1, self.dense2):
            layer.weight.data.copy_(flow.tensor(truncated_normal(tuple(layer.weight.shape), 0.1, rng)))
            nn.init.zeros_(layer.bias)

    def forward(self, images):
        # Shapes for 28x28 gray images:                                             (n, 1, 28, 28)
        x = functional.max_pool2d(functional.relu(self.conv1(images)), 2, stride=2)  # (n, 32, 14, 14)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2, stride=2)  # (n, 64, 7, 7)
        x = functional.relu(self.dense1(x.flatten(1)))  # (n, 512)
        return self.dense2(self.dropout(x))  # (n, 10), logits


def truncated_normal(shape, sigma, rng):
    """float32 normal deviates of mean 0; those beyond two sigma are drawn again.

    (oneflow.nn.init.trunc_normal_ clamps instead, and at two, not two sigma.)
    """
    x = rng.standard_normal(shape)
    while True:
        beyond = np.abs(x) > 2
        if not beyond.any():
            return (sigma * x).astype(np.float32)
        x[beyond] = rng.standard_normal(beyond.sum())


# -- loop -------------------------------------------------------------------------

def train(model, pipeline, optimizer, device, config):
    """Take config.steps steps; print each one's loss; return the losses.

    The losses stay on the device and are fetched ``fetch_every`` steps
    together, since a GPU would otherwise have to be waited for at every step.
    Raises InputError where the loss is no longer a number.
    """
    model.train()
    losses, waiting = [], []
    start = time.perf_counter()
    with tqdm(total=config.steps, unit="step", disable=None) as bar:  # disable=None: only on a terminal
        for step in range(1, config.steps + 1):
            images, labels = pipeline()
            waiting.append(train_step(model, optimizer, images.to(device), labels.to(device), config.augment))
            if len(waiting) == config.fetch_every or step == config.steps:
                fetched = flow.stack(waiting).numpy()
                waiting.clear()
                losses += print_losses(fetched, first_step=len(losses) + 1)
                bar.update(len(fetched))
                bar.set_postfix(loss="{:.4g}".format(losses[-1]))
    seconds = time.perf_counter() - start
    talk("{} steps in {:.1f} s, {:.0f} images/s, final loss {:.4g}"
         .format(config.steps, seconds, config.steps * config.batch_size / seconds, losses[-1]))
    return losses


def train_step(model, optimizer, images, labels, augment):
    """One update of the model's weights; returns the loss, a 0-d tensor that is still on the device."""
    if augment:
        images = random_crop(images)
    loss = functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def print_losses(losses, first_step):
    """Print float32 (n,) losses a line each, as the tutorial does: ``[6.778578]``; return them as a list."""
    for step, loss in enumerate(losses, start=first_step):
        with tqdm.external_write_mode():  # clear of the progress bar
            say(str(losses[step - first_step:step - first_step + 1]))  # an array of one prints as [6.778578]
        if not math.isfinite(loss):
            raise InputError("the loss is {} at step {}: try a lower --learning_rate".format(loss, step))
    say(flush=True)  # kept, whatever comes
    return losses.tolist()


# -- what it came to --------------------------------------------------------------

def describe(dataset, model):
    size = "sizes vary" if dataset.width is None else "{}x{}".format(dataset.width, dataset.height)
    talk("dataset: {:,} {} images ({}) in {} parts, {} classes"
         .format(dataset.records, "gray" if dataset.channels == 1 else "colour", size, len(dataset.parts),
                 dataset.classes))
    talk("model: LeNet, {:,} parameters".format(sum(p.numel() for p in model.parameters())))


def report_accuracy(model, dataset, device, config):
    right = count_right(model, dataset, device, config)
    talk("the trained model gets {} of {} training images right ({:.2%})"
         .format(right, dataset.records, right / dataset.records))


def count_right(model, dataset, device, config):
    """How many of the dataset's images the model gets right; each is counted once.

    A reader knows no end, so the last batch runs on into the first records
    again; those are left out.
    """
    model.eval()
    pipeline = ImagePipeline(config, dataset, config.batch_size, shuffle_buffer=0)
    right = 0
    with flow.no_grad():
        for first in range(0, dataset.records, config.batch_size):
            images, labels = pipeline()
            hits = model(images.to(device)).argmax(dim=1).to("cpu") == labels
            right += int(hits.numpy()[:dataset.records - first].sum())
    return right


def draw_picture(config, dataset, losses):
    """Draw the first images of the dataset, as OneFlow decodes them, beside the losses."""
    from lenet.picture import COLUMNS, ROWS, draw_run  # matplotlib takes a second to import

    shown = min(ROWS * COLUMNS, dataset.records)
    pixels, labels = ImagePipeline(config, dataset, shown, shuffle_buffer=0).read()
    names = dataset.class_names
    titles = [names[label] if names else str(label) for label in labels.numpy()]
    try:
        draw_run(config.picture, pixels.numpy(), titles, losses)
    except OSError as error:
        raise InputError("cannot write the picture {}: {}".format(config.picture, error.strerror))
    talk("picture: {}".format(config.picture))


if __name__ == "__main__":
    run(main)
