"""Example counts that clients declare when joining, and their validation."""

from collections.abc import Sequence
from typing import Protocol

from fedshare.population.shares import Sized

KINDS = "training", "test", "validation"


class Counts(Protocol):
    """Receives the counts of each client that joins."""

    def declare(self, client: int, examples: int, tests: int = 0, validations: int = 0) -> None:
        """Raise ValueError if the counts cannot be this client's."""


class Computed:
    """Counts of data that this process has too: server and clients compute them from the same config and must agree."""

    def __init__(self, shares: Sequence[Sized]) -> None:
        self._shares = shares

    def declare(self, client: int, examples: int, tests: int = 0, validations: int = 0) -> None:
        share = self._shares[client]
        ours = share.size, share.tests, share.validations
        for kind, said, own in zip(KINDS, (examples, tests, validations), ours, strict=True):
            if said != own:
                raise ValueError(f"it says that it has {said} {kind} examples; by the server's count it has {own}")
