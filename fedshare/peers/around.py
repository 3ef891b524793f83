"""What strategies among peers share, however the peers aggregate: clients do what the inner strategy says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from fedshare.client import Client
from fedshare.forms import Form
from fedshare.payload import Payload
from fedshare.peers.flood import Links
from fedshare.peers.traffic import Traffic
from fedshare.rounds.account import Account
from fedshare.state import State
from fedshare.strategy import Strategy

Mixing = list[dict[int, float]]  # by peer, the weight of each sender, itself included


@runtime_checkable
class Centred(Protocol):
    """A strategy that treats a peer's own upload in another way than its neighbours'."""

    def aggregate_at(self, peer: int, state: State, round: int, uploads: dict[int, Payload]) -> State:
        """Return the memory of `peer` after the round, as `Strategy.aggregate`; `uploads` has the peer's own."""
        ...


@dataclass(frozen=True)
class Around(Strategy):
    """A strategy around another one, whose client side stays as it is."""

    inner: Strategy

    @property
    def form(self) -> Form:  # type: ignore[override]
        return self.inner.form

    @property
    def optimizes(self) -> bool:  # type: ignore[override]
        return self.inner.optimizes

    def apply(self, client: Client, download: Payload) -> None:
        self.inner.apply(client, download)

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        return self.inner.train(client, round, download)

    def accounted(self, account: Account, links: Callable[[int], Links]) -> Account:
        """Return the account of what is sent over the `links` of each round."""
        return Traffic(account.groups, account.whole, links=links)

    def evaluate(self, client: Client, round: int) -> Payload:
        return self.inner.evaluate(client, round)


def consensus(models: Tensor) -> float:
    """Return the root mean square distance of models, ``[peers, parameters]`` in float64, from their average."""
    apart = models - models.mean(0)
    return float(apart.square().sum() / len(models)) ** 0.5


def aggregated(
    inner: Strategy, peer: int, state: State, round: int, weights: dict[int, float], uploads: dict[int, Payload]
) -> State:
    """Return the memory of a peer after the round, with the uploads of the senders in `weights`."""
    gathered = {sender: replace(uploads[sender], weight=weight) for sender, weight in sorted(weights.items())}
    if isinstance(inner, Centred):
        return inner.aggregate_at(peer, state, round, gathered)
    return inner.aggregate(state, round, gathered)
