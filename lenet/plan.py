"""When what happens in a training: all of it follows from the dataset's size and the settings."""

from ofrecord.dataset.open_dataset import Dataset

from .config import TrainConfig
from .ranks import WORLD_SIZE


class Plan:
    """The steps and epochs of a training.

    ``num_steps`` is the smaller of ``config.steps`` and what makes ``config.epochs`` passes over
    ``num_records`` images. A batch is what all ranks take in one step together; it may reach from
    one epoch into the next. On several ranks ``num_records`` is what the rank with the most reads,
    times their number, so that an epoch ends when every image was read.
    """

    def __init__(self, config: TrainConfig, train_set: Dataset):
        self.num_records = WORLD_SIZE * max(train_set.records_per_rank(WORLD_SIZE))
        self.batch_size = config.batch_size
        self.evaluates_each_epoch = config.eval_dataset_dir is not None
        ends = [config.steps] if config.steps else []
        ends += [self.end_of_epoch(config.epochs)] if config.epochs else []
        self.num_steps = min(ends)
        self.num_epochs = self.epoch_of(self.num_steps)

    def end_of_epoch(self, epoch: int) -> int:
        """Return the step with which the reader has delivered every image ``epoch`` times."""
        return -(-epoch * self.num_records // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 1, in which a step, from 1, begins."""
        return (step - 1) * self.batch_size // self.num_records + 1

    def should_evaluate(self, step: int) -> bool:
        """Whether to evaluate after a step: the last, and each epoch's with a dataset for it."""
        ends_epoch = step > 0 and step == self.end_of_epoch(self.epoch_of(step))
        return step == self.num_steps or (self.evaluates_each_epoch and ends_epoch)
