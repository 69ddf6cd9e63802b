"""A model with its optimizer and learning-rate schedule, op by op or compiled as a graph.

Both learners are used alike::

    loss = learner.step(images, labels, dropout_mask)  # a 0-d tensor, still on the device
    learner.learning_rate   # of that step
    learner.model           # the network with the weights after it
    learner.state_dict()    # all else that it takes to continue, as NumPy arrays
    learner.close()

``images``, ``labels`` and ``dropout_mask`` are this rank's share of the batch,
and so is EagerLearner's loss; the mean over the ranks is the batch's.
"""

import numpy as np

from runtime.cli import InputError

from .checkpoint import Arrays, Checkpoint, Layout, check_layout, layout_of
from .config import TrainConfig
from .engine import flow
from .graph import GraphLearner
from .ranks import WORLD_SIZE
from .schedule import make_optimizer, resume_schedule

nn = flow.nn


class EagerLearner:
    """Op by op. On several ranks the gradients are averaged."""

    execution_mode = "op by op"

    def __init__(self, model: nn.Module, config: TrainConfig, num_steps: int):
        self.model = model
        self.learning_rate = config.learning_rate
        several = WORLD_SIZE > 1
        self._forward = nn.parallel.DistributedDataParallel(model) if several else model
        self._loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self._optimizer, self._schedule = make_optimizer(model, config, num_steps)

    def step(self, images, labels, dropout_mask):
        self.learning_rate = self._optimizer.param_groups[0]["lr"]
        loss = self._loss(self._forward(images, dropout_mask), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.detach()

    def state_layout(self) -> Layout:
        """Return what state_dict() holds after a step."""
        layout = {"step": ((), "int64")}
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                layout[f"{name}/{moment}"] = tuple(parameter.shape), "float32"
        return layout

    def state_dict(self) -> Arrays:
        """Return the number of steps, and Adam's moments of each parameter."""
        state = self._optimizer.state_dict()["state"]
        arrays = {"step": np.array(state["step"], np.int64)}
        for index, (name, _) in enumerate(self.model.named_parameters()):  # OneFlow counts them
            for moment, tensor in state[index].items():
                arrays[f"{name}/{moment}"] = tensor.numpy()
        return arrays

    def load_state_dict(self, state: Arrays) -> None:
        saved, steps = self._optimizer.state_dict(), int(state["step"])
        saved["state"] = {"step": steps}
        for index, (name, parameter) in enumerate(self.model.named_parameters()):
            saved["state"][index] = {
                moment: flow.tensor(state[f"{name}/{moment}"], device=parameter.device)
                for moment in ("exp_avg", "exp_avg_sq")
            }
        self._optimizer.load_state_dict(saved)
        resume_schedule(self._schedule, steps)

    def close(self) -> None:
        pass


def weights_of(model: nn.Module) -> Arrays:
    """Return a model's weights and biases as NumPy arrays, by name."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Give a model a checkpoint's weights. Raises InputError for those of another network."""
    check_layout(checkpoint.path, checkpoint.weights, layout_of(weights_of(model)))
    model.load_state_dict({name: flow.tensor(w) for name, w in checkpoint.weights.items()})


def make_learner(
    model: nn.Module, config: TrainConfig, num_steps: int, checkpoint: Checkpoint | None = None
) -> EagerLearner | GraphLearner:
    """Return the learner that ``config`` asks for, in the state of a checkpoint.

    Raises InputError for the checkpoint of another model or execution mode.
    """
    if checkpoint:
        path, info = checkpoint.path, checkpoint.info
        if info.spec != model.spec:
            raise InputError(f"cannot resume from {path}: it is of a different model")
        load_weights(model, checkpoint)  # before a graph copies them
    learner = (GraphLearner if config.graph else EagerLearner)(model, config, num_steps)
    if checkpoint:
        if info.execution_mode != learner.execution_mode:
            raise InputError(
                f"cannot resume from {path}: the model was trained {info.execution_mode}, "
                f"not {learner.execution_mode}"
            )
        check_layout(path, checkpoint.training, learner.state_layout())
        learner.load_state_dict(checkpoint.training)
    return learner
