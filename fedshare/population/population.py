"""All clients that may take part, on one scratch model: held by a simulation and by each of its workers."""

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
from fedshare.training.engine import Engine
from fedshare.training.parts import Role
from fedshare.training.scratch import Scratch
from fedshare.weights import Given

Place = tuple[Scratch, Engine]


@dataclass(frozen=True)
class Answer:
    """A client's reply, and its new memory."""

    payload: Payload
    state: State
    digests: dict[str, str]


@dataclass(frozen=True)
class Population:
    """All clients; client i has ``shares[i]``."""

    strategy: Strategy
    scratch: Scratch
    training: Training
    shares: Shares
    seed: int
    liars: Adversaries = field(default_factory=Honest)
    task: Task = field(default_factory=Classification)
    unseen: int = 0  # number of clients that never train and are tested as newcomers
    given: Given | None = None  # the part of the model that came from a file of weights
    targets: int = 1  # the largest number of targets in one example
    stand_in: Part | None = None  # placeholder examples, if clients have their data elsewhere

    @cached_property
    def newcomers(self) -> list[int]:
        """The ids of the clients that never train, drawn by the seed. Raises UserError if none would train."""
        if not 0 <= self.unseen < len(self.shares):
            raise UserError(
                f"unseen={self.unseen}: must be from 0 to {len(self.shares) - 1}, for somebody has to train"
            )
        order = torch.randperm(len(self.shares), generator=seeds.generator(self.seed, "unseen"))
        return sorted(order[: self.unseen].tolist())

    def drawn(self) -> Tensors:
        """Return the tensors of the initial model that a run must store: all but frozen ones that came from a file."""
        scratch, given = self.scratch, self.given.digests if self.given else frozenset()
        frozen = scratch.parts.named(Role.FROZEN, scratch.whole)
        elsewhere = {name for name in frozen if given and digest(scratch.whole[name]) in given}
        return {name: tensor for name, tensor in scratch.whole.items() if name not in elsewhere}

    @property
    def clients(self) -> int:
        """The number of clients that train, or may."""
        return len(self.shares) - self.unseen

    def client(self, id: int, state: State, record: PrivacyRecord | None = None, place: Place | None = None) -> Client:
        """Return the client without any adversary's changes."""
        scratch, engine = place or (self.scratch, None)
        share = self.shares[id]
        return Client(id, self.seed, scratch, self.training, share, state, record, self.task, engine)

    def sizes(self) -> list[int]:
        """Return each client's number of training examples."""
        return [share.size for share in self.shares]

    def answer(
        self,
        purpose: Purpose,
        round: int,
        id: int,
        download: Payload,
        state: State,
        record: PrivacyRecord | None = None,
        place: Place | None = None,
    ) -> Answer:
        """Return a client's reply to `download`; a test changes nothing in `state`.

        `record` is the client's own; a simulation has none, so that runs are repeatable and the noise is known.
        `place`: the model in memory and the engine that the client uses instead of the population's.
        """
        tests = purpose is Purpose.EVALUATE
        client = self.client(id, deepcopy(state) if tests else state, record, place)
        client, strategy = self.liars.play(client, self.strategy, round)
        payload = answer(strategy, client, purpose, round, download)
        if not tests:
            return Answer(payload, client.state, digests(client.state))
        return Answer(Payload(payload.tensors, payload.metrics | self.liars.success(client)), state, {})
