"""One training step, in the two ways that OneFlow has: op by op, or as a graph that is compiled first.

Both train ``model`` with ``optimizer``, an Adam, and are called alike::

    loss = step(images, labels, kept)  # a 0-d tensor, still on the device
    step.pull()                        # now model and optimizer are as the last step left them
    step.close()

``images``, ``labels`` and ``kept`` (see LeNet.forward) are this rank's share
of the batch, and so is the loss; the mean of the ranks' is the batch's.
"""

import gc

from .engine import flow
from .model import LeNet
from .ranks import WORLD_SIZE

functional = flow.nn.functional


class EagerStep:
    """Op by op. On several ranks the gradients are averaged."""

    scaler = {}

    def __init__(self, model, optimizer):
        self.optimizer = optimizer
        self.forward = flow.nn.parallel.DistributedDataParallel(model) if WORLD_SIZE > 1 else model

    def __call__(self, images, labels, kept):
        loss = functional.cross_entropy(self.forward(images, kept), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def pull(self):
        pass  # a step changes them itself

    def close(self):
        pass


class GraphStep:
    """Forward, backward, optimizer, learning rate and, with ``amp``, mixed precision, compiled at the first call.

    Here OneFlow leaves much unsaid: a graph takes Adam's moments and count of
    steps only before its first call, trains nothing at all where a parameter
    has a gradient then, and leaves the optimizer's and the schedule's Python
    objects as they were. So it gets a copy of the model, without gradients,
    with an optimizer and a schedule of its own (``make_optimizer(parameters)``
    returns the two), and is asked afterwards whether it counted its steps.

    On several ranks each holds the whole copy and sees its share of a batch.
    With ``amp`` a step whose gradients overflow float16 changes nothing and
    does not count; the next are scaled less. ``scaler`` is the state of that,
    {name: tensor}, to be saved with the optimizer's.
    """

    def __init__(self, model, optimizer, make_optimizer, amp=False, scaler=()):
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

    def __call__(self, images, labels, kept):
        split = (each.to_global(self.placement, flow.sbp.split(0)) for each in (images, labels, kept))
        self.steps += 1
        return self.graph(*split).to_local()

    def _push(self):
        """Give the graph the optimizer's moments and count of steps, before its first call."""
        saved = self.optimizer.state_dict()["state"]
        self.steps = saved["step"]
        state = {STEPS: flow.tensor([self.steps], dtype=flow.int64, placement=self.placement, sbp=flow.sbp.broadcast)}
        for index, (name, _) in enumerate(self.model.named_parameters()):
            for moment, ending in MOMENTS.items():
                state[_name(name, ending)] = saved[index][moment].to_global(self.placement, flow.sbp.broadcast)
        for name, value in self.scaler.items():
            state[SCALER.format(self.graph.name) + name] = value.to_global(self.placement, flow.sbp.broadcast)
        self.graph.load_state_dict(state)

    def pull(self):
        """Copy weights, moments and count of steps from the graph."""
        if not self.steps:
            return
        state = self.graph.state_dict()
        names = list(enumerate(name for name, _ in self.model.named_parameters()))
        steps = self._local(state[STEPS]).item()
        prefix = SCALER.format(self.graph.name)
        self.scaler = {name[len(prefix):]: self._local(value) for name, value in state.items() if name.startswith(prefix)}
        lost = steps != self.steps and not self.scaler  # with a scaler, some may have been skipped
        if lost or any(_name(name, ending) not in state for _, name in names for ending in MOMENTS.values()):
            raise RuntimeError("OneFlow's graph does not train: after {} steps it counts {}".format(self.steps, steps))
        self.model.load_state_dict({name: weight.to_local() for name, weight in state["model"].items()})
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {index: {moment: state[_name(name, ending)].to_local().clone() for moment, ending in MOMENTS.items()}
                              for index, name in names}
        optimizer["state"]["step"] = self.steps = steps
        self.optimizer.load_state_dict(optimizer)

    def _local(self, tensor):
        """On this rank's CPU, what a graph keeps on rank 0, wherever there."""
        tensor = tensor.to_global(flow.placement("cpu", tensor.placement.ranks))
        return tensor.to_global(flow.placement("cpu", self.placement.ranks), flow.sbp.broadcast).to_local().clone()

    def close(self):
        """The last call. The end of a graph waits for the other ranks, so it cannot be left to the garbage collector."""
        self.graph = None
        gc.collect()


class _Graph(flow.nn.Graph):
    def __init__(self, model, optimizer, schedule, amp):
        super().__init__()
        self.model = model
        self.add_optimizer(optimizer, lr_sch=schedule)
        if amp:
            self.config.enable_amp(True)  # float16 where it is safe; small gradients are scaled up to survive it
            self.set_grad_scaler(flow.amp.GradScaler())

    def build(self, images, labels, kept):
        loss = functional.cross_entropy(self.model(images, kept), labels)
        loss.backward()
        return loss.to_global(sbp=flow.sbp.broadcast)  # the whole batch's, for every rank


# Names in a graph's state.
STEPS = "System-Train-TrainStep"
SCALER = "System-Train-DynamicLossScale-{}-"  # of a graph's name
MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}  # of Adam: in an optimizer's state, and here


def _name(parameter, ending):
    return "model.{}-{}".format(parameter, ending)
