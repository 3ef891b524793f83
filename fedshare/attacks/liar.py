"""Independent adversaries: their choice for a population, and their client and strategy."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedshare import seeds
from fedshare.attacks.attack import Attack, Sight
from fedshare.attacks.update import read, write
from fedshare.client import Client
from fedshare.data.dataset import Examples
from fedshare.forms import Form
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors


@dataclass(frozen=True)
class Liars:
    """The adversaries of an attack (`fedshare.population.adversaries.Adversaries`)."""

    attack: Attack
    clients: int
    seed: int

    @cached_property
    def ids(self) -> list[int]:
        """The adversaries' ids. Raises UserError if the attack names a client that does not exist."""
        named = self.attack.who(self.clients, self.seed)
        return named if self.attack.lies else []

    def play(self, client: Client, strategy: Strategy, round: int) -> "tuple[Client, Strategy]":
        if client.id not in self.ids:
            return client, strategy
        attack = self.attack.at(round)
        return Adversary(client, attack), Liar(strategy, attack)

    def success(self, client: Client) -> dict[str, float]:
        return self.attack.success(client)


@dataclass(frozen=True)
class Liar(Strategy):
    """A strategy whose uploads are forged."""

    honest: Strategy
    attack: Attack

    @property
    def form(self) -> Form:  # type: ignore[override]  # the strategy's own
        return self.honest.form

    def init(self, params: Tensors, clients: int) -> State:
        return self.honest.init(params, clients)

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return self.honest.download(state, client_id, purpose)

    def apply(self, client: Client, download: Payload) -> None:
        self.honest.apply(client, download)

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        start = client.params()
        upload = self.honest.train(client, round, download)
        if type(self.attack).forge is Attack.forge:
            return upload
        memory = dict(client.state.pop("attack", {}))
        sight = Sight(round, client.seed, client.id, memory, start)
        upload = write(upload, start, self.attack.forge(read(upload, start), sight))
        if memory:
            client.state["attack"] = memory
        return upload

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        return self.honest.aggregate(state, round, uploads)

    def evaluate(self, client: Client, round: int) -> Payload:
        return self.honest.evaluate(client, round)


class Adversary(Client):
    """A client that trains on poisoned examples or, as a free-rider, not at all."""

    def __init__(self, client: Client, attack: Attack) -> None:
        vars(self).update(vars(client))
        self.attack = attack

    @cached_property
    def train_examples(self) -> Examples:
        generator = seeds.generator(self.seed, "poison", self.id)
        return self.attack.poison(self._share.train, generator).to(self._scratch.device)

    def fit(self, *args: Any, **options: Any) -> dict[str, float]:
        """Claim all examples that it was given. A free-rider claims the loss of the downloaded model."""
        claimed = {"examples": float(len(self._share.train))}
        if self.attack.trains:
            return super().fit(*args, **options) | claimed
        examples = self.train_examples
        if self.training.privacy:
            return claimed
        return claimed | {"train_loss": self.loss_over(examples)}
