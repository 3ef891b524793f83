"""Everyone who may take part, on one scratch model: what a simulation holds, and each of its workers."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedshare.client import Client, Scratch
from fedshare.data.dataset import Dataset, Examples
from fedshare.data.partition.base import Partition, Split
from fedshare.network import Task, answer
from fedshare.payload import Payload
from fedshare.state import State, digests
from fedshare.strategy import Strategy

Share = tuple[Examples, Examples]  # what a client trains on, and what it is tested on


class Shares(Sequence[Share]):
    """The parts of a data set by client, cut out when asked for: ten thousand of them cost no memory."""

    def __init__(self, dataset: Dataset, partition: Partition, seed: int) -> None:
        self.split: Split = partition.split(dataset, seed)
        self.dataset, self._partition, self._seed = dataset, partition, seed

    def __len__(self) -> int:
        return len(self.split.train)

    def __getitem__(self, client: int) -> Share:  # type: ignore[override]  # a slice of clients is not needed
        train, test = (
            self._partition.view(client, self.dataset.pool.subset(indices[client]), self._seed)
            for indices in (self.split.train, self.split.test)
        )
        return train, test

    def sizes(self) -> list[int]:
        return [len(indices) for indices in self.split.train]


@dataclass(frozen=True)
class Population:
    """Client i has ``shares[i]``."""

    strategy: Strategy
    scratch: Scratch
    shares: Sequence[Share]
    seed: int

    def client(self, id: int, state: State) -> Client:
        train, test = self.shares[id]
        return Client(id, self.seed, self.scratch, train, test, state)

    def sizes(self) -> list[int]:
        """How many training examples each client has."""
        return self.shares.sizes() if isinstance(self.shares, Shares) else [len(train) for train, _ in self.shares]

    def answer(self, task: Task, round: int, id: int, download: Payload, state: State) -> "Answer":
        client = self.client(id, state)
        payload = answer(self.strategy, client, task, round, download)
        return Answer(payload, client.state, digests(client.state) if task is Task.TRAIN else {})


@dataclass(frozen=True)
class Answer:
    """What comes back from a client, and what it remembers now."""

    payload: Payload
    state: State
    digests: dict[str, str]
