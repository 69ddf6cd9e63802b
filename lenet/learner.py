"""A model with its optimizer and learning-rate schedule, op by op or compiled as a graph.

Both learners are used alike::

    loss = learner.step(images, labels, dropout_mask)  # a 0-d tensor, still on the device
    learner.model           # LeNet with the weights after that step
    learner.state_dict()    # all else that it takes to continue, as NumPy arrays
    learner.load_state_dict(weights, state)
    learner.close()

``images``, ``labels`` and ``dropout_mask`` are this rank's share of the batch,
and so is EagerLearner's loss; the mean over the ranks is the batch's.
"""

import gc

import numpy as np

from runtime.cli import log

from .checkpoint import Arrays, Layout
from .config import TrainConfig
from .engine import flow
from .model import LeNet
from .ranks import WORLD_SIZE

functional = flow.nn.functional

STEP = "System-Train-TrainStep"  # names of a graph's state
SCALER = "System-Train-DynamicLossScale-"
SCALER_STATE: Layout = {
    SCALER + "LossScale": ((1,), np.dtype("f4")),
    SCALER + "GoodStepCounter": ((1,), np.dtype("i8")),
}


def make_learner(
    model: LeNet, config: TrainConfig, num_steps: int, amp: bool = False
) -> "EagerLearner | GraphLearner":
    """Return the learner that ``config`` asks for; ``amp``: in mixed precision."""
    if config.amp and not amp:
        log("amp: mixed precision requires a GPU; using float32 on the CPU", "warning")
    if config.graph:
        return GraphLearner(model, config, num_steps, amp)
    return EagerLearner(model, config, num_steps)


def loss_function(logits, labels, label_smoothing: float = 0.0):
    """Return the batch's mean cross-entropy; see Szegedy et al., Rethinking the Inception
    Architecture for Computer Vision, 2015, for ``label_smoothing``."""
    loss = functional.cross_entropy(logits, labels)
    if label_smoothing:  # by hand: cross_entropy of OneFlow 0.8.0 has no such parameter
        uniform = -functional.log_softmax(logits, dim=1).mean()
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return loss


class Learner:
    """What both share: Adam with its schedule, and the names and shapes of the state."""

    execution_mode: str  # as messages and checkpoints name it
    counters: Layout  # of steps
    moments: tuple[str, str]  # Adam's two of a parameter, as OneFlow names them

    def __init__(self, model: LeNet, config: TrainConfig, num_steps: int):
        self._optimizer = flow.optim.Adam(model.parameters(), lr=config.learning_rate)
        schedules = flow.optim.lr_scheduler
        if config.schedule == "cosine":
            schedule = schedules.CosineDecayLR(self._optimizer, decay_steps=num_steps)
        else:
            schedule = schedules.ConstantLR(self._optimizer, factor=1.0, total_iters=0)
        if warmup := round(config.warmup * num_steps):
            schedule = schedules.WarmUpLR(schedule, warmup_factor=0.05, warmup_iters=warmup)
        self._schedule = schedule
        self._shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self._label_smoothing = config.label_smoothing

    def state_layout(self) -> Layout:
        """Return what state_dict holds after a step, to compare a checkpoint with."""
        layout = dict(self.counters)
        for name, shape in self._shapes.items():
            layout |= {moment.format(name): (shape, np.dtype("f4")) for moment in self.moments}
        return layout

    def _resume_schedule(self, steps: int) -> None:
        self._schedule.last_step = steps - 1
        self._schedule.step()  # the learning rate is a function of the step

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._optimizer.param_groups[0]["lr"]


class EagerLearner(Learner):
    """Op by op. On several ranks the gradients are averaged."""

    execution_mode = "op by op"
    counters = {"step": ((), np.dtype("i8"))}
    moments = ("{}/exp_avg", "{}/exp_avg_sq")

    def __init__(self, model: LeNet, config: TrainConfig, num_steps: int):
        super().__init__(model, config, num_steps)
        self.model = model
        several = WORLD_SIZE > 1
        self._forward = flow.nn.parallel.DistributedDataParallel(model) if several else model

    def step(self, images, labels, dropout_mask):
        logits = self._forward(images, dropout_mask)
        loss = loss_function(logits, labels, self._label_smoothing)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.detach()

    def state_dict(self) -> Arrays:
        state = self._optimizer.state_dict()["state"]
        arrays = {"step": np.array(state["step"], np.int64)}
        for index, (name, _) in enumerate(self.model.named_parameters()):  # OneFlow counts them
            for moment, tensor in state[index].items():
                arrays[f"{name}/{moment}"] = tensor.numpy()
        return arrays

    def load_state_dict(self, weights: Arrays, state: Arrays) -> None:
        self.model.load_state_dict({name: flow.tensor(w) for name, w in weights.items()})
        saved = self._optimizer.state_dict()
        saved["state"] = {"step": int(state["step"])}
        for index, (name, parameter) in enumerate(self.model.named_parameters()):
            saved["state"][index] = {
                moment: flow.tensor(state[f"{name}/{moment}"], device=parameter.device)
                for moment in ("exp_avg", "exp_avg_sq")
            }
        self._optimizer.load_state_dict(saved)
        self._resume_schedule(int(state["step"]))

    def close(self) -> None:
        pass


class GraphLearner(Learner):
    """The whole step, with ``amp`` in mixed precision, compiled when it is first taken.

    OneFlow's graph takes its state only before its first call, trains nothing
    at all where a parameter has a gradient then, and leaves Python's
    optimizer and schedule as they were. So it gets a copy of the model without
    gradients, and is asked whether it counted its steps.

    On several ranks each holds the whole copy and sees its share of a batch.
    With ``amp`` a step whose gradients overflow float16 changes nothing and
    does not count; the next are scaled less.
    """

    moments = ("model.{}-m", "model.{}-v")

    def __init__(self, model: LeNet, config: TrainConfig, num_steps: int, amp: bool = False):
        self.execution_mode = "as a graph in mixed precision" if amp else "as a graph"
        self.counters = {STEP: ((1,), np.dtype("i8"))} | (SCALER_STATE if amp else {})
        self._local = model
        self._device = next(model.parameters()).device
        self._placement = flow.placement(self._device.type, list(range(WORLD_SIZE)))
        self._copy = LeNet(model.spec).to(self._device)
        self._copy.load_state_dict(model.state_dict())
        self._copy.to_global(self._placement, flow.sbp.broadcast)
        super().__init__(self._copy, config, num_steps)
        # It only takes over their settings: Python's schedule still gives learning_rate.
        self._graph = _Graph(self._copy, self._optimizer, self._schedule, self._label_smoothing)
        if amp:
            self._graph.config.enable_amp(True)  # float16 where it is safe
            self._graph.set_grad_scaler(flow.amp.GradScaler())  # small gradients survive, scaled up

    def step(self, images, labels, dropout_mask):
        split = flow.sbp.split(0)
        batch = (each.to_global(self._placement, split) for each in (images, labels, dropout_mask))
        loss = self._graph(*batch).to_local()
        self._schedule.step()
        return loss

    @property
    def model(self) -> LeNet:
        if self._schedule.last_step:  # before the first step there is no state
            self.state_dict()  # did it train?
            weights = self._graph.state_dict()["model"]
            self._local.load_state_dict({name: w.to_local() for name, w in weights.items()})
        return self._local

    def state_dict(self) -> Arrays:
        """Return the graph's own state. Raises RuntimeError where it does not train."""
        own = f"{SCALER}{self._graph.name}-"
        state = {
            name.replace(own, SCALER): self._to_numpy(tensor)
            for name, tensor in self._graph.state_dict().items()
            if name != "model"
        }
        counted, steps = int(state.get(STEP, [0])[0]), self._schedule.last_step
        skips = SCALER + "LossScale" in state  # a step that overflowed is not counted
        if not set(self.state_layout()) <= set(state) or (counted != steps and not skips):
            raise RuntimeError(
                f"OneFlow's graph does not train: after {steps} steps it counts {counted}"
            )
        return state

    def _to_numpy(self, tensor) -> np.ndarray:
        """A tensor that a graph keeps on rank 0, or on all, as an array on this rank."""
        tensor = tensor.to_global(flow.placement("cpu", tensor.placement.ranks))
        everywhere = flow.placement("cpu", self._placement.ranks)
        return tensor.to_global(everywhere, flow.sbp.broadcast).to_local().numpy()

    def load_state_dict(self, weights: Arrays, state: Arrays) -> None:
        """Take up a state; before the first step."""
        own = f"{SCALER}{self._graph.name}-"
        self._copy.load_state_dict({name: self._to_global(w) for name, w in weights.items()})
        self._graph.load_state_dict(
            {name.replace(SCALER, own): self._to_global(a) for name, a in state.items()}
        )
        self._resume_schedule(int(state[STEP][0]))

    def _to_global(self, array: np.ndarray):
        tensor = flow.tensor(array, device=self._device)
        return tensor.to_global(self._placement, flow.sbp.broadcast)

    def close(self) -> None:
        """End the graph: that waits for the other ranks, so the garbage collector cannot do it."""
        self._graph = self._copy = None
        gc.collect()


class _Graph(flow.nn.Graph):
    def __init__(self, model, optimizer, schedule, label_smoothing):
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing
        self.add_optimizer(optimizer, lr_sch=schedule)

    def build(self, images, labels, dropout_mask):
        logits = self.model(images, dropout_mask)
        loss = loss_function(logits, labels, self.label_smoothing)
        loss.backward()
        return loss.to_global(sbp=flow.sbp.broadcast)  # the whole batch's, for every rank
