"""The data set of a config, and the assignment of its examples to clients."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fedshare.data import split
from fedshare.data.dataset import Dataset, dtypes
from fedshare.data.partition import Own
from fedshare.data.partition.base import Partition
from fedshare.errors import UserError
from fedshare.experiments.config import sources
from fedshare.experiments.config.instantiate import make, shown
from fedshare.simulation import Declared, Owned, Part, Partitioned, Shares
from fedshare.tasks import Task


def shared_out(
    config: DictConfig, task: Task, partition: Partition, own: str | None
) -> tuple[Dataset, Shares, Part | None]:
    """Return a data set of the right form, the clients' shares, and the stand-in for examples on other hosts."""
    if not isinstance(partition, Own):
        if own is not None:
            raise UserError(f"--data {own}: is for partition=own; this run divides one data set among its clients")
        dataset = data(config, task)
        return dataset, Partitioned(dataset, partition, config.seed, config.validation), None
    if config.train_examples is not None:
        raise UserError(f"train_examples={config.train_examples}: partition=own has no common data set")
    like, examples = sources.blank(config, task)
    if own is None and not partition.sources:
        return like, Declared(partition.clients, partition.max_examples), examples

    def load(client: int) -> Dataset:
        where = f"partition.sources[{client}]" if own is None else f"--data {own.replace('{id}', str(client))}"
        source = config.partition.sources[client] if own is None else sources.named(own, client)
        try:
            with split.stream(config.seed, "own", client):
                found = data(sources.merged(config, source), task)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if (kinds := dtypes(found.pool)) != (wanted := dtypes(like.pool)):
            raise UserError(f"{where}: inputs of {kinds}, and data.dtype says {wanted}")
        return found

    return like, Owned(partition.clients, load, config.seed, config.validation), None


def data(config: DictConfig, task: Task) -> Dataset:
    """Load the data set, with targets as the task takes them. Raises UserError if it contradicts the config."""
    dataset: Dataset = make(OmegaConf.select(config, "data.load"), "data.load", Dataset)
    if (stated := config.data.get("classes")) != dataset.classes:
        raise UserError(
            f"data.classes={shown(stated)}: {dataset.name} has {dataset.classes}{_counted(dataset, stated)}"
        )
    dataset = task.fitted(dataset)
    shape = config.data.get("shape")
    stated = OmegaConf.to_container(shape) if OmegaConf.is_config(shape) else shape
    if stated != (found := plain(dataset.shape)):
        raise UserError(f"data.shape={stated}: {dataset.name} has {found}")
    count = config.get("train_examples")
    return dataset if count is None else dataset.scarce(count, config.seed)


def _counted(dataset: Dataset, stated: Any) -> str:
    """Hint for a mismatch of classes: they are counted from the largest label, or the task may be a regression."""
    labels = dataset.labels
    if labels is not None and labels.min() > 0:
        return f", for its labels are from {labels.min()} to {labels.max()}, and must be from 0"
    numbers = stated is None and labels is not None
    return "; of a regression it is how many numbers an example has" if numbers else ""


def plain(shape: Any) -> Any:
    """Return shapes in the form used in configs."""
    if isinstance(shape, Mapping):
        return {name: list(part) for name, part in shape.items()}
    return [list(part) for part in shape] if isinstance(shape, list) else list(shape)
