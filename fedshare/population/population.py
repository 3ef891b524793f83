"""Everyone who may take part, on one scratch model: what a simulation holds, and each of its workers."""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import torch

from fedshare import seeds
from fedshare.client import Client, PrivacyRecord, Training
from fedshare.errors import UserError
from fedshare.network import Purpose, answer
from fedshare.payload import Payload
from fedshare.population.adversaries import Adversaries, Honest
from fedshare.population.shares import Part, Shares
from fedshare.state import State, digests
from fedshare.strategy import Strategy
from fedshare.tasks import Classification, Task
from fedshare.tensors import Tensors, digest
from fedshare.training.fit import Engine, Plain
from fedshare.training.parts import Role
from fedshare.training.scratch import Scratch
from fedshare.weights import Given


@dataclass(frozen=True)
class Answer:
    """What comes back from a client, and what it remembers now."""

    payload: Payload
    state: State
    digests: dict[str, str]


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
    ) -> Answer:
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
