"""What share of a training step on the CPU does reading its images take? python benchmarks/step.py DATASET"""

import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from lenet.config import parse_config
from lenet_train import ImagePipeline, LeNet, Spec, flow, train_step
from ofrecord.scan import open_dataset

STEPS = 30


def main():
    config, _ = parse_config(["--batch_size", "64"])
    dataset = open_dataset(sys.argv[1])
    spec = Spec.of(dataset, None)
    pipeline = ImagePipeline(sys.argv[1], dataset, spec, config.batch_size, config.shuffle_buffer)
    model = LeNet(spec, config.dropout).draw_weights("tutorial", np.random.default_rng(0))
    optimizer = flow.optim.Adam(model.parameters(), lr=1e-3)
    batch = pipeline()

    def mean_seconds(step):
        step().numpy()
        start = time.perf_counter()
        for _ in range(STEPS):
            result = step()
        result.numpy()
        return (time.perf_counter() - start) / STEPS
    whole = mean_seconds(lambda: train_step(model, optimizer, *pipeline(), config))
    without = mean_seconds(lambda: train_step(model, optimizer, *batch, config))
    alone = mean_seconds(lambda: pipeline()[0])
    print(json.dumps({"text": "{:.1f} ms of {:.0f} ms ({:.1%}); with a batch that is there already a step takes {:.0f} ms".format(
        1000 * alone, 1000 * whole, alone / whole, 1000 * without)}))


if __name__ == "__main__":
    main()
