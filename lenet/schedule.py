"""Adam, and the schedule of its learning rate."""

from .config import TrainConfig
from .engine import flow


def make_optimizer(model: flow.nn.Module, config: TrainConfig, num_steps: int):
    """Return Adam for a model's parameters, and the schedule of its learning rate."""
    optimizer = flow.optim.Adam(model.parameters(), lr=config.learning_rate)
    schedules = flow.optim.lr_scheduler
    if config.schedule == "cosine":
        schedule = schedules.CosineDecayLR(optimizer, decay_steps=num_steps)
    else:
        schedule = schedules.ConstantLR(optimizer, factor=1.0, total_iters=0)
    if warmup := round(config.warmup * num_steps):
        schedule = schedules.WarmUpLR(schedule, warmup_factor=0.05, warmup_iters=warmup)
    return optimizer, schedule


def resume_schedule(schedule, steps: int) -> None:
    schedule.last_step = steps - 1
    schedule.step()  # the learning rate is a function of the step
