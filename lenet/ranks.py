"""The ranks of a training: the processes that train one model together.

There is one, or as many as OneFlow's launcher started::

    python -m oneflow.distributed.launch --nproc_per_node 2 lenet_train.py

Every function here but launcher() must be called on all ranks, in the same
order: each waits for the other ranks.
"""

import os
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.cli import InputError

from .engine import flow

RANK = flow.env.get_rank()
LOCAL_RANK = flow.env.get_local_rank()  # among those on this machine
WORLD_SIZE = flow.env.get_world_size()


def launcher() -> str:
    """Return what to put between ``python`` and a script to start it on as many ranks again."""
    machines = flow.env.get_node_size()
    if WORLD_SIZE == 1:
        return ""
    words = f"-m oneflow.distributed.launch --nproc_per_node {WORLD_SIZE // machines} "
    if machines > 1:
        words += f"--nnodes {machines} --node_rank N --master_addr {os.environ['MASTER_ADDR']} "
    if os.environ["MASTER_PORT"] != "29500":  # the launcher's default
        words += f"--master_port {os.environ['MASTER_PORT']} "
    return words


def gather(value: Any) -> list[Any]:
    """Return each rank's ``value``, which may be anything that pickles, in a list by rank."""
    if WORLD_SIZE == 1:
        return [value]
    data = pickle.dumps(value)
    broadcast = flow._oneflow_internal.cpu_broadcast  # returns the bytes of the rank that it names
    of_ranks = [broadcast(data if rank == RANK else None, rank) for rank in range(WORLD_SIZE)]
    return [pickle.loads(each) for each in of_ranks]


def mean_over_ranks(losses: Sequence[flow.Tensor]) -> list[float]:
    """Return the mean over the ranks of each loss, a 0-d tensor."""
    return np.mean(gather(flow.stack(losses).numpy()), axis=0).tolist()


def merge_over_ranks(value: Any) -> Any:
    """Return the ranks' values merged by their method ``merge``, on every rank."""
    first, *others = gather(value)
    for other in others:
        first.merge(other)
    return first


def check_all_ranks_agree(settings: dict[str, Any]) -> None:
    """Raise InputError unless all ranks have equal ``settings``."""
    for rank, others in enumerate(gather(settings)):
        for name, value in settings.items():
            if others[name] != value:
                raise InputError(
                    f"all ranks must have the same {name}, "
                    f"but it is {value} on rank {RANK} and {others[name]} on rank {rank}"
                )
