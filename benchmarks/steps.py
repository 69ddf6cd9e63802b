"""Training steps, which train.py times.

python benchmarks/steps.py WAY DATASET BATCH [OPTIONS OF lenet_train.py]

WAY is ours (on every rank that the launcher starts), parts (what a step's parts
take) or pytorch; BATCH is the images of a step, of all ranks together. Timed after
WARM_UP steps. Prints a JSON line, {"images": …, "seconds": …}.
"""

import json
import os
import sys
import time

WARM_UP, SECONDS = 8, float(os.environ.get("STEPS_SECONDS", "10"))


def ours(dataset: str, batch_size: int, options: list[str]) -> None:
    """Time lenet_train.py's reader, decoders and step."""
    training = make_training(dataset, batch_size, options)
    from lenet import ranks

    def train(num_steps):
        for _ in range(num_steps):
            loss = training.step(*training.next_batch())
        loss.numpy()  # OneFlow works in order: the last is done last

    train(WARM_UP)
    num_steps, start = 0, time.perf_counter()
    while max(ranks.gather(time.perf_counter() - start)) < SECONDS:  # so all ranks take equal steps
        train(10)
        num_steps += 10
    seconds = time.perf_counter() - start
    training.learner.close()
    if ranks.RANK == 0:
        print(json.dumps({"images": num_steps * batch_size, "seconds": seconds}), flush=True)
    leave()


def parts(dataset: str, batch_size: int, options: list[str]) -> None:
    """Time a step and its parts by themselves, in milliseconds."""
    training = make_training(dataset, batch_size, options)
    images, labels = training.next_batch()

    def milliseconds(function):
        function().numpy()
        calls = round(3 * SECONDS)
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        result.numpy()
        return 1000 * (time.perf_counter() - start) / calls

    times = {
        "a whole step": milliseconds(lambda: training.step(*training.next_batch())),
        "with a batch in memory": milliseconds(lambda: training.step(images, labels)),
        "without random numbers too": milliseconds(lambda: training.learn(images, labels)),
        "fetching each loss": milliseconds(lambda: fetched(training.learn(images, labels))),
        "the loader alone": milliseconds(lambda: training.next_batch()[0]),
    }
    print(json.dumps(times), flush=True)
    leave()


def fetched(loss):
    loss.numpy()
    return loss


def leave() -> None:
    """End as the scripts do: at once where there are several ranks."""
    from runtime.cli import run_main

    run_main(lambda: None)


class Training:
    """What lenet_train.py makes: a reader of batches and a learner that takes steps."""

    def __init__(self, folder: str, batch_size: int, options: list[str]):
        import numpy as np

        import lenet_train as script
        from lenet.config import parse_config
        from ofrecord.dataset.open_dataset import open_dataset

        options = ["--batch_size", str(batch_size), "--init", "he", *options]
        self.script, (self.config, _) = script, parse_config(options)
        dataset = open_dataset(folder)
        self.device = script.choose_device(self.config.device)
        spec = script.ModelSpec.from_dataset(dataset, None)
        self.batch_per_rank = batch_size // script.WORLD_SIZE
        buffer = self.config.shuffle_buffer
        reader = script.ImageReader(dataset, spec, self.batch_per_rank, buffer)
        model = script.LeNet(spec)
        script.init_weights(model, self.config.init, 0)
        self.learner = script.make_learner(model.to(self.device), self.config, 1000)
        self.next_batch, self.rng = reader.next_batch, np.random.default_rng(0)
        self.mask = self.make_mask()

    def make_mask(self):
        make = self.script.make_dropout_mask
        return make(self.rng, self.batch_per_rank, self.config.dropout).to(self.device)

    def step(self, images, labels):
        """Take the script's step; return its loss, still on the device."""
        images, labels = images.to(self.device), labels.to(self.device)
        images = self.script.augment(images, self.config, self.rng)
        return self.learner.step(images, labels, self.make_mask())

    def learn(self, images, labels):
        """Take a step without drawing anything for it."""
        return self.learner.step(images.to(self.device), labels.to(self.device), self.mask)


def make_training(folder: str, batch_size: int, options: list[str]) -> Training:
    if "STEPS_IMPORT_FIRST" in os.environ:  # before lenet.engine sets anything
        import oneflow  # noqa: F401
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return Training(folder, batch_size, options)


def pytorch(dataset: str, batch_size: int, options: list[str]) -> None:
    """Time the same network, batch size, dropout and optimizer in PyTorch.

    Its batch is in memory: nothing is loaded or augmented.
    """
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, 10),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.randn(batch_size, 1, 28, 28).to(device)
    labels = (torch.arange(batch_size) % 10).to(device)

    def train(num_steps):
        for _ in range(num_steps):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    train(WARM_UP)
    num_steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        train(10)
        num_steps += 10
    seconds = time.perf_counter() - start
    print(json.dumps({"images": num_steps * batch_size, "seconds": seconds}))


if __name__ == "__main__":
    ways = {"ours": ours, "parts": parts, "pytorch": pytorch}
    ways[sys.argv[1]](sys.argv[2], int(sys.argv[3]), sys.argv[4:])
