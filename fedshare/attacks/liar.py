"""The client's half of a strategy as an adversary plays it."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fedshare import seeds
from fedshare.attacks.attack import Attack, Sight
from fedshare.attacks.update import read, write
from fedshare.client import Client
from fedshare.data.dataset import Examples
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Strategy
from fedshare.tensors import Tensors


@dataclass(frozen=True)
class Liar(Strategy):
    """A strategy, but for what it uploads."""

    honest: Strategy
    attack: Attack

    def init(self, params: Tensors) -> State:
        return self.honest.init(params)

    def download(self, state: State, client_id: int) -> Payload | None:
        return self.honest.download(state, client_id)

    def apply(self, client: Client, download: Payload) -> None:
        self.honest.apply(client, download)

    def train(self, client: Client, round: int) -> Payload:
        start = client.params()
        upload = self.honest.train(client, round)
        if type(self.attack).forge is Attack.forge:
            return upload
        memory = dict(client.state.pop("attack", {}))
        sight = Sight(round, client.seed, client.id, memory, start)
        upload = write(upload, start, self.attack.forge(read(upload, start), sight))
        if memory:
            client.state["attack"] = memory
        return upload

    def pack(self, upload: Payload) -> Payload:
        return self.honest.pack(upload)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        return self.honest.aggregate(state, round, uploads)

    def personalise(self, client: Client, round: int) -> None:
        self.honest.personalise(client, round)


class Adversary(Client):
    """A client that trains on poisoned examples, or, a free-rider, not at all."""

    def __init__(self, client: Client, attack: Attack) -> None:
        vars(self).update(vars(client))
        self.attack = attack

    @cached_property
    def train_examples(self) -> Examples:
        generator = seeds.generator(self.seed, "poison", self.id)
        return self.attack.poison(self._share.train, generator).to(self._scratch.device)

    def fit(
        self,
        round: int,
        names: Iterable[str] | None = None,
        *,
        epochs: float | None = None,
        toward: Tensors | None = None,
        pull: float = 0.0,
    ) -> dict[str, float]:
        """It claims all examples that it was given. A free-rider claims the loss of the model that it was sent."""
        claimed = {"examples": float(len(self._share.train))}
        if self.attack.trains:
            return super().fit(round, names, epochs=epochs, toward=toward, pull=pull) | claimed
        examples = self.train_examples
        if self.training.privacy:
            return claimed
        return claimed | {"train_loss": self.loss_over(examples)}
