"""How many examples a client says that it has, when it joins, and what that is compared with."""

from collections.abc import Sequence
from typing import Protocol

from fedshare.population.shares import Sized

KINDS = "training", "test", "validation"


class Counts(Protocol):
    """Hears the counts of each client that joins."""

    def declare(self, client: int, examples: int, tests: int = 0, validations: int = 0) -> None:
        """Raises ValueError where these cannot be the client's."""


class Computed:
    """The counts of data that this process has too: server and clients compute them from one config, and must agree."""

    def __init__(self, shares: Sequence[Sized]) -> None:
        self._shares = shares

    def declare(self, client: int, examples: int, tests: int = 0, validations: int = 0) -> None:
        share = self._shares[client]
        ours = share.size, share.tests, share.validations
        for kind, said, own in zip(KINDS, (examples, tests, validations), ours, strict=True):
            if said != own:
                raise ValueError(f"it says that it has {said} {kind} examples; by the server's count it has {own}")
