"""Each client has data of its own, on its own host: nothing is divided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split, whole
from fedshare.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Own(Partition):
    """A client's training and test examples come from its own data set. If its loader draws a split, that depends on
    the client's id and the run's seed.

    In a deployment the data are set on the client's host (`fedshare client --data`), not in the shared config, and the
    server has none of them. A client reports its number of examples when it joins, once per run. A simulation lists the
    sources by client id.
    """

    clients: int
    sources: Sequence[Any] = ()  # by client id: a file to use instead of data.load.path, or arguments of data.load
    max_examples: int = 1_000_000  # the largest number of examples a client may report

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("max_examples", self.max_examples, 1)
        if self.sources and len(self.sources) != self.clients:
            raise UserError(f"sources: {len(self.sources)}, one a client, and clients={self.clients}")

    def split(self, dataset: Dataset, seed: int) -> Split:
        raise UserError("partition=own: divides nothing; each client has a data set of its own")
