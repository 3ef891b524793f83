"""Everyone who may take part, on one scratch model: what a simulation holds, and each of its workers."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch

from fedshare import seeds
from fedshare.client import Client, PrivacyRecord, Share, Training
from fedshare.data.dataset import Dataset, Examples
from fedshare.data.partition.base import Partition, Split
from fedshare.data.partition.deal import shuffled
from fedshare.errors import UserError
from fedshare.network import Purpose, answer
from fedshare.payload import Payload
from fedshare.seeds import numpy_generator
from fedshare.state import State, digests
from fedshare.strategy import Strategy
from fedshare.tasks import Classification, Task
from fedshare.tensors import Tensors, digest
from fedshare.training.fit import Engine, Plain
from fedshare.training.parts import Role
from fedshare.training.scratch import Scratch
from fedshare.weights import Given


class Sized(Share, Protocol):
    @property
    def size(self) -> int:
        """How many training examples."""
        ...

    @property
    def tests(self) -> int:
        """How many test examples, as far as is known."""
        ...

    @property
    def validations(self) -> int:
        """How many examples that validate, as far as is known."""
        ...


class Part(NamedTuple):
    """Examples at hand."""

    train: Examples
    test: Examples

    @property
    def validation(self) -> None:
        """There is none."""

    @property
    def size(self) -> int:
        return len(self.train)

    @property
    def tests(self) -> int:
        return len(self.test)

    @property
    def validations(self) -> int:
        return 0


def held_out(count: int, share: float) -> int:
    """How many of so many training examples validate; one is left to train on."""
    return min(round(share * count), count - 1)


def validating(rows: np.ndarray, share: float, client: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's rows to train on, and those to validate with, drawn by its id and the seed; both sorted."""
    count = held_out(len(rows), share)
    if not count:
        return rows, rows[:0]
    order = shuffled(len(rows), numpy_generator(seed, "validation", client))
    return rows[np.sort(order[count:])], rows[np.sort(order[:count])]


@dataclass(frozen=True)
class Cut:
    """A client's part of a partition, cut out when asked for: ten thousand of them cost no memory."""

    client: int
    parts: "Partitioned"

    @property
    def size(self) -> int:
        count = len(self.parts.split.train[self.client])
        return count - held_out(count, self.parts.validation)

    @property
    def tests(self) -> int:
        return len(self.parts.split.test[self.client])

    @property
    def validations(self) -> int:
        return held_out(len(self.parts.split.train[self.client]), self.parts.validation)

    @property
    def train(self) -> Examples:
        return self._view(self._divided[0])

    @property
    def validation(self) -> Examples | None:
        held_out = self._divided[1]
        return self._view(held_out) if self.parts.validation else None

    @property
    def test(self) -> Examples:
        return self._view(self.parts.split.test[self.client])

    @property
    def _divided(self) -> tuple[np.ndarray, np.ndarray]:
        rows = self.parts.split.train[self.client]
        return validating(rows, self.parts.validation, self.client, self.parts.seed)

    def _view(self, indices: np.ndarray) -> Examples:
        examples = self.parts.dataset.pool.subset(indices)
        return self.parts.partition.view(self.client, examples, self.parts.seed)


class Partitioned(Sequence[Cut]):
    """A data set and how it is divided. Of each client's training part the share `validation` is held out."""

    def __init__(self, dataset: Dataset, partition: Partition, seed: int, validation: float = 0.0) -> None:
        self.dataset, self.partition, self.seed, self.validation = dataset, partition, seed, validation
        self.split: Split = partition.split(dataset, seed)

    def __len__(self) -> int:
        return len(self.split.train)

    def __getitem__(self, client: int) -> Cut:  # type: ignore[override]  # a slice of clients is not needed
        if not 0 <= client < len(self):
            raise IndexError(client)
        return Cut(client, self)


Shares = Sequence[Sized]  # by client id


class Adversaries(Protocol):
    """Some of the clients, who do not do what the strategy says."""

    @property
    def ids(self) -> list[int]: ...

    def play(self, client: Client, strategy: Strategy, round: int) -> tuple[Client, Strategy]:
        """The client and its half of the strategy as this client plays it; an honest one's as they are."""
        ...

    def success(self, client: Client) -> dict[str, float]:
        """How far they reach their aim at a client's model: metrics of its test."""
        ...


@dataclass(frozen=True)
class Honest:
    """Nobody lies."""

    ids: list[int] = field(default_factory=list)

    def play(self, client: Client, strategy: Strategy, round: int) -> tuple[Client, Strategy]:
        return client, strategy

    def success(self, client: Client) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Population:
    """Client i has ``shares[i]``."""

    strategy: Strategy
    scratch: Scratch
    training: Training
    shares: Shares
    seed: int
    liars: Adversaries = field(default_factory=Honest)
    task: Task = field(default_factory=Classification)
    unseen: int = 0  # how many clients never train, and are tested as newcomers
    given: Given | None = None  # what of the model came from a file of weights
    targets: int = 1  # the most targets that an example has
    stand_in: Part | None = None  # examples that are like those that are elsewhere, where clients have their own
    engine: Engine = field(default_factory=Plain)

    @cached_property
    def newcomers(self) -> list[int]:
        """The ids of those who never train, drawn by the seed. Raises UserError where nobody would be left."""
        if not 0 <= self.unseen < len(self.shares):
            raise UserError(
                f"unseen={self.unseen}: must be from 0 to {len(self.shares) - 1}, for somebody has to train"
            )
        order = torch.randperm(len(self.shares), generator=seeds.generator(self.seed, "unseen"))
        return sorted(order[: self.unseen].tolist())

    def drawn(self) -> Tensors:
        """What a run has to hold of the model that everyone starts from: all but what is frozen and from a file."""
        scratch, given = self.scratch, self.given.digests if self.given else frozenset()
        frozen = scratch.parts.named(Role.FROZEN, scratch.whole)
        elsewhere = {name for name in frozen if given and digest(scratch.whole[name]) in given}
        return {name: tensor for name, tensor in scratch.whole.items() if name not in elsewhere}

    @property
    def clients(self) -> int:
        """How many clients train, or may."""
        return len(self.shares) - self.unseen

    def client(self, id: int, state: State, record: PrivacyRecord | None = None) -> Client:
        """As it would be if nobody lied."""
        share = self.shares[id]
        return Client(id, self.seed, self.scratch, self.training, share, state, record, self.task, self.engine)

    def sizes(self) -> list[int]:
        """How many training examples each client has."""
        return [share.size for share in self.shares]

    def answer(
        self,
        purpose: Purpose,
        round: int,
        id: int,
        download: Payload,
        state: State,
        record: PrivacyRecord | None = None,
    ) -> "Answer":
        """`record` is the client's own; in a simulation there is none, so that a run repeats and its noise is known.

        A test changes nothing in `state`.
        """
        tests = purpose is Purpose.EVALUATE
        client = self.client(id, deepcopy(state) if tests else state, record)
        client, strategy = self.liars.play(client, self.strategy, round)
        payload = answer(strategy, client, purpose, round, download)
        if not tests:
            return Answer(payload, client.state, digests(client.state))
        return Answer(Payload(payload.tensors, payload.metrics | self.liars.success(client)), state, {})


@dataclass(frozen=True)
class Answer:
    """What comes back from a client, and what it remembers now."""

    payload: Payload
    state: State
    digests: dict[str, str]
