"""Each client has data of its own, where it is: nobody divides anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition, Split, whole
from fedshare.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Own(Partition):
    """A client's training and test examples are those of its own data set; a split that its loader makes is drawn by
    the client's id and the run's seed.

    In a deployment that is its host's affair (`fedshare client --data`), and no part of the config that all must have
    alike; the server has none of the data. How many examples a client has it says when it joins, once for the run. A
    simulation lists the sources by client id.
    """

    clients: int
    sources: Sequence[Any] = ()  # by client id: a file in the place of data.load.path, or arguments of data.load
    max_examples: int = 1_000_000  # the most that a client may say it has

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("max_examples", self.max_examples, 1)
        if self.sources and len(self.sources) != self.clients:
            raise UserError(f"sources: {len(self.sources)}, one a client, and clients={self.clients}")

    def split(self, dataset: Dataset, seed: int) -> Split:
        raise UserError("partition=own: divides nothing; each client has a data set of its own")
