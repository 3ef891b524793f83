"""Clients that deviate from the strategy, as the population sees them."""

from dataclasses import dataclass, field
from typing import Protocol

from fedshare.client import Client
from fedshare.strategy import Strategy


class Adversaries(Protocol):
    """The clients that deviate from the strategy."""

    @property
    def ids(self) -> list[int]: ...

    def play(self, client: Client, strategy: Strategy, round: int) -> tuple[Client, Strategy]:
        """Return the client and strategy as this client plays them; an honest client's are unchanged."""
        ...

    def success(self, client: Client) -> dict[str, float]:
        """Return metrics on how far the attack reaches its aim at a client's model, for its test."""
        ...


@dataclass(frozen=True)
class Honest:
    """No adversaries."""

    ids: list[int] = field(default_factory=list)

    def play(self, client: Client, strategy: Strategy, round: int) -> tuple[Client, Strategy]:
        return client, strategy

    def success(self, client: Client) -> dict[str, float]:
        return {}
