"""A training step compiled as an nn.Graph."""

import copy
import gc

from runtime.cli import log

from .checkpoint import Arrays, Layout, layout_of
from .config import TrainConfig
from .engine import flow
from .ranks import WORLD_SIZE
from .schedule import make_optimizer, resume_schedule

nn = flow.nn

STEP = "System-Train-TrainStep"  # names of a graph's state
SCALER = "System-Train-DynamicLossScale-"


class GraphLearner:
    """The whole step, with ``amp`` in mixed precision, compiled when it is first taken.

    OneFlow's graph takes its state only before its first call, trains nothing
    at all where a parameter has a gradient then, and leaves Python's
    optimizer and schedule as they were. So it gets a copy of the model without
    gradients, and state_dict() makes sure that it trained.

    On several ranks each holds the whole copy and sees its share of a batch.
    With ``amp`` a step whose gradients overflow float16 changes nothing and
    does not count; the next are scaled less.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, num_steps: int):
        device = next(model.parameters()).device.type
        amp = config.amp and device != "cpu"
        if config.amp and not amp:
            log("amp: mixed precision requires a GPU; using float32 on the CPU", "warning")
        self.execution_mode = "as a graph in mixed precision" if amp else "as a graph"
        self.learning_rate = config.learning_rate
        self._model, self._amp = model, amp
        self._everywhere = {
            "placement": flow.placement(device, list(range(WORLD_SIZE))),
            "sbp": flow.sbp.broadcast,
        }
        self._copy = copy.deepcopy(model).to_global(**self._everywhere)
        self._optimizer, self._schedule = make_optimizer(self._copy, config, num_steps)
        self._graph = _Graph(self._copy, self._optimizer, self._schedule, config.label_smoothing)
        if amp:
            self._graph.config.enable_amp(True)  # float16 where it is safe
            self._graph.set_grad_scaler(flow.amp.GradScaler())  # small gradients survive, scaled up

    def step(self, images, labels, dropout_mask):
        # Only Python's schedule tells the learning rate: the graph has its own.
        self.learning_rate = self._optimizer.param_groups[0]["lr"]
        placement, share = self._everywhere["placement"], flow.sbp.split(0)
        batch = (each.to_global(placement, share) for each in (images, labels, dropout_mask))
        loss = self._graph(*batch).to_local()
        self._schedule.step()
        return loss

    @property
    def model(self) -> nn.Module:
        if self._schedule.last_step:  # before the first step a graph has no weights
            self.state_dict()  # did it train?
            weights = self._graph.state_dict()["model"]
            self._model.load_state_dict({name: w.to_local() for name, w in weights.items()})
        return self._model

    def state_layout(self) -> Layout:
        """Return what state_dict() holds after a step."""
        layout = {STEP: ((1,), "int64")}
        if self._amp:
            layout[SCALER + "LossScale"] = (1,), "float32"
            layout[SCALER + "GoodStepCounter"] = (1,), "int64"
        for name, parameter in self._model.named_parameters():
            for moment in "mv":
                layout[f"model.{name}-{moment}"] = tuple(parameter.shape), "float32"
        return layout

    def state_dict(self) -> Arrays:
        """Return the graph's own state. Raises RuntimeError where it does not train."""
        state = {
            name.replace(f"{SCALER}{self._graph.name}-", SCALER): value.numpy()
            for name, value in self._graph.state_dict().items()
            if isinstance(value, flow.Tensor)  # not the group of the model's weights
        }
        steps, counted = self._schedule.last_step, int(state.get(STEP, [0])[0])
        # A graph that does not train has no moments. With amp, steps that overflowed do not count.
        if layout_of(state) != self.state_layout() or (counted != steps and not self._amp):
            raise RuntimeError(f"OneFlow's graph does not train: it counts {counted} of {steps}")
        return state

    def load_state_dict(self, state: Arrays) -> None:
        """Take up a state; before the first step."""
        tensors = {name: flow.tensor(array, **self._everywhere) for name, array in state.items()}
        scaler = f"{SCALER}{self._graph.name}-"
        self._graph.load_state_dict({n.replace(SCALER, scaler): t for n, t in tensors.items()})
        resume_schedule(self._schedule, int(state[STEP][0]))

    def close(self) -> None:
        """End the graph: that waits for the other ranks, so the garbage collector cannot do it."""
        self._graph = self._copy = None
        gc.collect()


class _Graph(nn.Graph):
    def __init__(self, model, optimizer, schedule, label_smoothing):
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.add_optimizer(optimizer, lr_sch=schedule)

    def build(self, images, labels, dropout_mask):
        loss = self.loss(self.model(images, dropout_mask), labels)
        loss.backward()
        return loss.to_global(sbp=flow.sbp.broadcast)  # the whole batch's, for every rank
