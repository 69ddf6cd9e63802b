"""Training steps, as train.py times them: prints a JSON line, {"images": …, "seconds": …}.

python benchmarks/steps.py WAY DATASET [OPTIONS OF lenet_train.py]

WAY is ours (of every rank, where the launcher started several), loader (its
share of a step) or pytorch. Timed after WARM_UP steps.
"""

import json
import os
import sys
import time

WARM_UP, SECONDS = 8, 10
BATCH = 64  # of all ranks together


def ours(dataset, options):
    """lenet_train.py's own reader, decoders and step."""
    config, dataset, pipeline, model, step, device = made(dataset, options)
    from lenet import ranks
    from lenet_train import train_step

    def take(steps):
        for _ in range(steps):
            loss = train_step(step, model, *(each.to(device) for each in pipeline()), config)
        loss.numpy()  # OneFlow works in order: with the last all are done
    take(WARM_UP)
    steps, start = 0, time.perf_counter()
    while max(ranks.gather(time.perf_counter() - start)) < SECONDS:  # all ranks take equal steps
        take(10)
        steps += 10
    seconds = time.perf_counter() - start
    step.close()
    if ranks.RANK == 0:
        print(json.dumps({"images": steps * BATCH, "seconds": seconds}), flush=True)


def loader(dataset, options):
    """The same step with a batch that is there already, and the loader alone, in milliseconds."""
    config, dataset, pipeline, model, step, device = made(dataset, options)
    from lenet_train import train_step

    batch = pipeline()

    def milliseconds(do, count=30):
        do().numpy()
        start = time.perf_counter()
        for _ in range(count):
            result = do()
        result.numpy()
        return 1000 * (time.perf_counter() - start) / count
    whole = milliseconds(lambda: train_step(step, model, *(each.to(device) for each in pipeline()), config))
    without = milliseconds(lambda: train_step(step, model, *(each.to(device) for each in batch), config))
    print(json.dumps({"whole": whole, "without": without, "loader": milliseconds(lambda: pipeline()[0])}))


def made(folder, options):
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from functools import partial

    import numpy as np

    from lenet import ranks
    from lenet.config import parse_config
    from lenet.device import choose_device
    from lenet_train import (
        EagerStep,
        GraphStep,
        ImagePipeline,
        LeNet,
        Spec,
        make_adam,
        open_dataset,
    )

    config, _ = parse_config(["--batch_size", str(BATCH), *options])
    dataset, device = open_dataset(folder), choose_device(config.device)
    spec = Spec.of(dataset, None)
    pipeline = ImagePipeline(folder, dataset, spec, BATCH // ranks.WORLD_SIZE, config.shuffle_buffer)
    model = LeNet(spec, config.dropout).draw_weights("he", np.random.default_rng(0)).to(device)
    make_optimizer = partial(make_adam, config, 1000)
    optimizer, _ = make_optimizer(model.parameters())
    step = GraphStep(model, optimizer, make_optimizer, config.amp) if config.graph else EagerStep(model, optimizer)
    return config, dataset, pipeline, model, step, device


def pytorch(dataset, options):
    """The same network, batch, dropout and optimizer; its batch lies in memory, so nothing is loaded or augmented."""
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2, 2), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 10)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images, labels = torch.randn(BATCH, 1, 28, 28).to(device), (torch.arange(BATCH) % 10).to(device)

    def take(steps):
        for _ in range(steps):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
    take(WARM_UP)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        take(10)
        steps += 10
    print(json.dumps({"images": steps * BATCH, "seconds": time.perf_counter() - start, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    {"ours": ours, "loader": loader, "pytorch": pytorch}[sys.argv[1]](sys.argv[2], sys.argv[3:])
