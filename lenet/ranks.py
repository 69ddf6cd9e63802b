"""The ranks of a training: OneFlow's processes that train one model together, one, or as many as its launcher started.

    python -m oneflow.distributed.launch --nproc_per_node 2 lenet_train.py

Every function here must be called on all ranks alike, in the same order. They
wait for each other then.
"""

import os
import pickle

import numpy as np

from ofrecord.cli import InputError
from ofrecord.manifest import part_sizes

from .engine import flow

RANK = flow.env.get_rank()
LOCAL_RANK = flow.env.get_local_rank()  # among those on this machine
WORLD_SIZE = flow.env.get_world_size()
MACHINES = flow.env.get_node_size()

# What to put between ``python`` and a script to start as many ranks again.
LAUNCHER = "" if WORLD_SIZE == 1 else "-m oneflow.distributed.launch {}--nproc_per_node {} ".format(
    "" if MACHINES == 1 else "--nnodes {} --node_rank N --master_addr {} ".format(MACHINES, os.environ.get("MASTER_ADDR")),
    WORLD_SIZE // MACHINES)


def gather(value):
    """Each rank's ``value``, in a list by rank. Anything that pickles."""
    if WORLD_SIZE == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = [int(size) for size in _all_gather(np.array([data.size], np.int64))]
    padded = np.zeros(max(sizes), np.uint8)
    padded[:data.size] = data
    return [pickle.loads(each[:size].tobytes()) for each, size in zip(_all_gather(padded), sizes)]


def _all_gather(array):
    tensor = flow.tensor(array)
    tensors = [flow.zeros(*array.shape, dtype=tensor.dtype) for _ in range(WORLD_SIZE)]
    flow.comm.all_gather(tensors, tensor)
    return [each.numpy() for each in tensors]


def wait_for_all():
    gather(None)


def mean(tensor):
    """The mean over the ranks of a tensor, which it is computed in."""
    if WORLD_SIZE > 1:
        flow.comm.all_reduce(tensor)
        tensor /= WORLD_SIZE
    return tensor


def agree(settings, but):
    """Raises InputError where the ranks do not all have the same ``settings``, {name: value}, ``but`` some."""
    for rank, others in enumerate(gather(settings)):
        for name, value in settings.items():
            if others[name] != value and name not in but:
                raise InputError("the ranks must all have the same {}: here it is {}, and for rank {} {}".format(
                    name, value, rank, others[name]))


def share_parts(dataset):
    """The part files that each rank reads, as OneFlow's reader deals them: a list of lists of Part, by rank."""
    shares, parts = [], list(dataset.parts)
    for size in part_sizes(len(parts), WORLD_SIZE):
        shares.append(parts[:size])
        del parts[:size]
    return shares


def share_records(dataset):
    """How many records each rank reads, by rank."""
    return [sum(part.records for part in parts) for parts in share_parts(dataset)]


def check_shares(config, dataset, eval_dataset):
    """Can the parts and the batches be shared out? Raises InputError where a rank would get less than another."""
    if WORLD_SIZE == 1:
        return
    if config.batch_size % WORLD_SIZE:
        raise InputError("batch_size {} cannot be shared by {} ranks: take a multiple of {}".format(
            config.batch_size, WORLD_SIZE, WORLD_SIZE))
    if len(dataset.parts) % WORLD_SIZE:
        raise InputError("{} has {} parts, which {} ranks cannot share evenly: convert with --part_num {}".format(
            config.dataset_dir, len(dataset.parts), WORLD_SIZE, -(-len(dataset.parts) // WORLD_SIZE) * WORLD_SIZE))
    if eval_dataset and len(eval_dataset.parts) < WORLD_SIZE:
        raise InputError("{} has {} parts, too few for {} ranks: convert with --part_num {}".format(
            config.eval_dataset_dir, len(eval_dataset.parts), WORLD_SIZE, WORLD_SIZE))
    records = share_records(dataset)
    if max(records) > min(records) + len(dataset.parts) // WORLD_SIZE:  # more than the converter's rounding
        raise InputError("{}: {} ranks would read {} records each: its parts are too uneven; convert the images again with "
                         "img2ofrecord.py".format(config.dataset_dir, WORLD_SIZE, " and ".join(map(str, records))))
    if config.batch_size > WORLD_SIZE * min(records):
        raise InputError("batch_size {} is larger than the dataset".format(config.batch_size))
