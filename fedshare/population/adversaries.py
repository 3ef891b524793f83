"""Clients that do not do what the strategy says, as the population knows them."""

from dataclasses import dataclass, field
from typing import Protocol

from fedshare.client import Client
from fedshare.strategy import Strategy


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
