"""One training step, in OneFlow's two execution modes: op by op, or compiled as a graph.

Both train ``model`` with ``optimizer``, an Adam, and have the same interface::

    loss = step(images, labels, dropout_mask)  # a 0-d tensor, still on the device
    step.pull()                                # updates model and optimizer to the last step
    step.close()

``images``, ``labels`` and ``dropout_mask`` (see LeNet.forward) are this rank's
part of the batch, and so is the loss; the batch's loss is the mean over the ranks.
"""

import gc
from collections.abc import Callable, Mapping
from typing import Any

from .engine import flow
from .model import LeNet
from .ranks import WORLD_SIZE

functional = flow.nn.functional


class EagerStep:
    """A step that is executed op by op; gradients are averaged over the ranks."""

    scaler = {}

    def __init__(self, model: LeNet, optimizer: flow.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.forward = flow.nn.parallel.DistributedDataParallel(model) if WORLD_SIZE > 1 else model

    def __call__(
        self, images: flow.Tensor, labels: flow.Tensor, dropout_mask: flow.Tensor
    ) -> flow.Tensor:
        loss = functional.cross_entropy(self.forward(images, dropout_mask), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def pull(self) -> None:
        """Do nothing: a step updates model and optimizer itself."""

    def close(self) -> None:
        """Do nothing."""


class GraphStep:
    """A step that is compiled as a graph at the first call, including optimizer and schedule.

    Three properties of OneFlow's graphs are not documented: a graph accepts
    Adam's moments and step count only before its first call, does not train at
    all if a parameter has a gradient then, and does not update the Python
    objects of the optimizer and the schedule. So it gets a copy of the model,
    without gradients, with an optimizer and a schedule of its own
    (``make_optimizer(parameters)`` returns both), and pull checks its step count.

    Each of several ranks has the whole copy and gets its part of a batch.
    ``amp`` enables mixed precision: a step whose gradients overflow float16 is
    skipped and not counted, and the scale of the next is reduced. ``scaler`` is
    the gradient scaler's state, {name: tensor}, to be saved with the optimizer's.
    """

    def __init__(
        self,
        model: LeNet,
        optimizer: flow.optim.Optimizer,
        make_optimizer: Callable[[Any], tuple[flow.optim.Optimizer, Any]],
        amp: bool = False,
        scaler: Mapping[str, flow.Tensor] | tuple = (),
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, dict(scaler)
        device = next(model.parameters()).device
        self.placement = flow.placement(device.type, list(range(WORLD_SIZE)))
        copy = LeNet(model.spec).to(device)
        copy.load_state_dict(model.state_dict())
        copy.to_global(self.placement, flow.sbp.broadcast)
        self.graph = _Graph(copy, *make_optimizer(copy.parameters()), amp)
        self.steps = 0
        if optimizer.state_dict()["state"]["step"]:
            self._push()

    def __call__(
        self, images: flow.Tensor, labels: flow.Tensor, dropout_mask: flow.Tensor
    ) -> flow.Tensor:
        split = (
            each.to_global(self.placement, flow.sbp.split(0))
            for each in (images, labels, dropout_mask)
        )
        self.steps += 1
        return self.graph(*split).to_local()

    def _push(self):
        """Load the optimizer's moments and step count into the graph, before its first call."""
        saved = self.optimizer.state_dict()["state"]
        self.steps = saved["step"]
        everywhere = {"placement": self.placement, "sbp": flow.sbp.broadcast}
        state = {STEPS: flow.tensor([self.steps], dtype=flow.int64, **everywhere)}
        for index, (name, _) in enumerate(self.model.named_parameters()):
            for moment, ending in MOMENTS.items():
                state[_name(name, ending)] = saved[index][moment].to_global(**everywhere)
        for name, value in self.scaler.items():
            state[self._scaler_prefix + name] = value.to_global(**everywhere)
        self.graph.load_state_dict(state)

    @property
    def _scaler_prefix(self):
        return f"System-Train-DynamicLossScale-{self.graph.name}-"

    def pull(self) -> None:
        """Copy weights, moments and step count from the graph to model and optimizer.

        Raises RuntimeError if the graph did not train.
        """
        if not self.steps:
            return
        state = self.graph.state_dict()
        names = list(enumerate(name for name, _ in self.model.named_parameters()))
        steps = self._local(state[STEPS]).item()
        prefix = self._scaler_prefix
        self.scaler = {
            name[len(prefix) :]: self._local(value)
            for name, value in state.items()
            if name.startswith(prefix)
        }
        # With a scaler, steps may have been skipped.
        miscounted = steps != self.steps and not self.scaler
        if miscounted or any(
            _name(name, ending) not in state for _, name in names for ending in MOMENTS.values()
        ):
            raise RuntimeError(
                f"OneFlow's graph does not train: its step count is {steps} "
                f"after {self.steps} steps"
            )
        self.model.load_state_dict(
            {name: weight.to_local() for name, weight in state["model"].items()}
        )
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            index: {
                moment: state[_name(name, ending)].to_local().clone()
                for moment, ending in MOMENTS.items()
            }
            for index, name in names
        }
        optimizer["state"]["step"] = self.steps = steps
        self.optimizer.load_state_dict(optimizer)

    def _local(self, tensor):
        """Return a graph's tensor, which is on rank 0 only, on this rank's CPU."""
        tensor = tensor.to_global(flow.placement("cpu", tensor.placement.ranks))
        return (
            tensor.to_global(flow.placement("cpu", self.placement.ranks), flow.sbp.broadcast)
            .to_local()
            .clone()
        )

    def close(self) -> None:
        """Delete the graph.

        That waits for the other ranks, so that it must not be left to the
        garbage collector.
        """
        self.graph = None
        gc.collect()


class _Graph(flow.nn.Graph):
    def __init__(self, model, optimizer, schedule, amp):
        super().__init__()
        self.model = model
        self.add_optimizer(optimizer, lr_sch=schedule)
        if amp:
            # float16 where it is safe; gradients are scaled up so that small ones do not vanish.
            self.config.enable_amp(True)
            self.set_grad_scaler(flow.amp.GradScaler())

    def build(self, images, labels, dropout_mask):
        loss = functional.cross_entropy(self.model(images, dropout_mask), labels)
        loss.backward()
        return loss.to_global(sbp=flow.sbp.broadcast)  # the whole batch's, on every rank


# Names in a graph's state.
STEPS = "System-Train-TrainStep"
MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}  # Adam's: {name in an optimizer's state: ending here}


def _name(parameter, ending):
    return f"model.{parameter}-{ending}"
