"""Any partitioner of flwr-datasets for the training part; the test part is divided to match."""

import copy
import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split
from fedshare.data.partition.deal import matched, shuffled
from fedshare.errors import UserError
from fedshare.machine.extras import importing, root_cause
from fedshare.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Flwr(Partition):
    """A partitioner divides a table of the columns `idx`, `label` (if there are classes) and `owner` (if any).

    The table's rows are in an order drawn from the seed; the partitioner's other draws use its own `seed`.
    """

    clients: int | None = None  # the number of clients required of the partitioner; null: any
    partitioner: Any  # a partitioner, or its `_target_` and arguments

    def __post_init__(self) -> None:
        if self.clients is not None:
            super().__post_init__()

    def split(self, dataset: Dataset, seed: int) -> Split:
        with importing("datasets", "partition=flwr", "partitioners"):
            from datasets import Dataset as Table
        rows = shuffled(dataset.train_size, numpy_generator(seed, "partition"))
        columns = {"idx": np.arange(len(rows)), "label": dataset.labels, "owner": dataset.owner}
        # A partitioner accepts only one table, and its random state advances with use.
        partitioner = (
            build(self.partitioner) if isinstance(self.partitioner, Mapping) else copy.deepcopy(self.partitioner)
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                partitioner.dataset = Table.from_dict({k: v[rows] for k, v in columns.items() if v is not None})
                train = [np.sort(partitioner.load_partition(i)["idx"]) for i in range(partitioner.num_partitions)]
        except Exception as error:
            raise UserError(f"partition=flwr: {type(partitioner).__name__}: {line(error)}") from error
        if len(train) != (self.clients or len(train)):
            raise UserError(f"partition=flwr: the partitioner makes {len(train)} parts, not clients={self.clients}")
        return matched(dataset, train, seed)


def build(spec: Mapping[str, Any]) -> Any:
    """Return the object that `_target_` names, built with the other entries, which may be such specs themselves.

    It is built here and not with the rest of the configuration, so that an error can name a missing library.
    """
    arguments = {k: build(v) if isinstance(v, Mapping) else v for k, v in spec.items() if k != "_target_"}
    target = str(spec.get("_target_"))
    module, _, name = target.rpartition(".")
    if module.partition(".")[0] == "flwr_datasets":
        with importing("flwr_datasets", "partition=flwr"):
            importlib.import_module("flwr_datasets")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise UserError(f"partition.partitioner._target_={target}: cannot be imported: {root_cause(error)}") from error
    try:
        return kind(**arguments)
    except Exception as error:
        raise UserError(f"partition.partitioner._target_={target}: {line(error)}") from error


def line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
