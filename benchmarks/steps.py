"""Training steps, which train.py compares.

python benchmarks/steps.py WAY DATASET [OPTIONS OF lenet_train.py]

WAY is ours (on every rank that the launcher starts), loader (the time of a step
that it takes) or pytorch. Timed after WARM_UP steps. Prints a JSON line,
{"images": …, "seconds": …}.
"""

import json
import os
import sys
import time

WARM_UP, SECONDS = 8, 10
BATCH = 64  # of all ranks together


def ours(dataset: str, options: list[str]) -> None:
    """Time lenet_train.py's reader, decoders and step."""
    learner, next_batch, step = make_training(dataset, options)
    from lenet import ranks

    def train(num_steps):
        for _ in range(num_steps):
            loss = step(next_batch())
        loss.numpy()  # OneFlow works in order: the last is done last

    train(WARM_UP)
    num_steps, start = 0, time.perf_counter()
    while max(ranks.gather(time.perf_counter() - start)) < SECONDS:  # so all ranks take equal steps
        train(10)
        num_steps += 10
    seconds = time.perf_counter() - start
    learner.close()
    if ranks.RANK == 0:
        print(json.dumps({"images": num_steps * BATCH, "seconds": seconds}), flush=True)


def loader(dataset: str, options: list[str]) -> None:
    """Time the step, the step with a batch in memory, and the loader alone, in milliseconds."""
    _, next_batch, step = make_training(dataset, options)
    batch = next_batch()

    def milliseconds(function, calls=30):
        function().numpy()
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        result.numpy()
        return 1000 * (time.perf_counter() - start) / calls

    times = {
        "whole": milliseconds(lambda: step(next_batch())),
        "without": milliseconds(lambda: step(batch)),
        "loader": milliseconds(lambda: next_batch()[0]),
    }
    print(json.dumps(times))


def make_training(folder: str, options: list[str]) -> tuple:
    """Return what a training step needs: the learner, and functions that read a batch and take a step."""
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import numpy as np

    import lenet_train as script
    from lenet.config import parse_config

    config, _ = parse_config(["--batch_size", str(BATCH), "--init", "he", *options])
    dataset, device = script.open_dataset(folder), script.choose_device(config.device)
    spec, batch_per_rank = script.ModelSpec.from_dataset(dataset, None), BATCH // script.WORLD_SIZE
    reader = script.ImageReader(dataset, spec, batch_per_rank, config.shuffle_buffer)
    model = script.LeNet(spec).init_weights(config.init, 0).to(device)
    learner = script.make_learner(model, config, 1000, config.amp)
    rng = np.random.default_rng(0)

    def step(batch):
        images, labels = (tensor.to(device) for tensor in batch)
        mask = script.make_dropout_mask(rng, batch_per_rank, config.dropout).to(device)
        return learner.step(script.augment(images, config, rng), labels, mask)

    return learner, reader.next_batch, step


def pytorch(dataset: str, options: list[str]) -> None:
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
    images, labels = torch.randn(BATCH, 1, 28, 28).to(device), (torch.arange(BATCH) % 10).to(device)

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
    print(
        json.dumps(
            {
                "images": num_steps * BATCH,
                "seconds": time.perf_counter() - start,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    {"ours": ours, "loader": loader, "pytorch": pytorch}[sys.argv[1]](sys.argv[2], sys.argv[3:])
