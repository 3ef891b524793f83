"""The meaning of a commit's bytes under its ledger's manifest: which integers, times which directions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedshare import seeds
from fedshare.directions import PROBES, Entry, Origin
from fedshare.directions.gaussian import Gaussian
from fedshare.directions.rademacher import Rademacher
from fedshare.ledger.coding import Bit, Byte, Coding, Float
from fedshare.ledger.commit import Commit, Manifest

MESSAGES = 256  # per peer and round
_POOL = 2**32 - 1  # no client's number: the peer of all messages whose directions come from a pool


class Directions(Protocol):
    name: str  # in the manifest
    bits: int  # fractional bits of their integers
    largest: int  # largest magnitude of their integers

    def draw(self, origin: Origin, count: int, device: torch.device) -> Any:
        """Return what `displace` needs for a message's directions."""
        ...

    def displace(self, vector: Tensor, drawn: Any, coefficients: Sequence[float]) -> None:
        """Add each probe's direction times its coefficient to the vector, in place."""
        ...

    def accumulate(self, into: Tensor, entries: Sequence[Entry], start: int, size: int) -> None:
        """Add every entry's directions, each times its integer, to `into`: integers of parameters from `start` on.

        `size` is that of the whole model.
        """
        ...


CODINGS: dict[str, Coding] = {kind.name: kind for kind in (Byte(), Float(), Bit())}
DIRECTIONS: dict[str, Directions] = {kind.name: kind for kind in (Rademacher(), Gaussian())}


@dataclass(frozen=True)
class Meaning:
    manifest: Manifest

    def __post_init__(self) -> None:
        for what, name, known in (
            ("codes", self.manifest.codes, CODINGS.keys()),
            ("directions", self.manifest.directions, DIRECTIONS.keys()),
        ):
            if name not in known:
                raise ValueError(f"its {what} are {name}; this version knows {', '.join(known)}")
        if not 0 <= self.manifest.fraction < 64:
            raise ValueError(f"its sums have {self.manifest.fraction} bits behind the point, not 0 to 63")

    @staticmethod
    @lru_cache(maxsize=8)  # a server needs it for each client's download
    def of(packed: str) -> "Meaning":
        """Return the meaning of a manifest given as text."""
        return Meaning(Manifest.unpack(packed.encode()))

    @cached_property
    def coding(self) -> Coding:
        return CODINGS[self.manifest.codes]

    @cached_property
    def directions(self) -> Directions:
        return DIRECTIONS[self.manifest.directions]

    def origin(self, peer: int, round: int, message: int) -> Origin:
        """Return the origin of a peer's message; with a pool, one drawn from the pool's."""
        if not 0 <= message < MESSAGES:
            raise ValueError(f"message {message} of {MESSAGES} in a round")
        if pool := self.manifest.pool:
            drawn = seeds.number(self.manifest.run, "pool", round, peer, message)
            return Origin(self.manifest.run, _POOL, drawn % pool)
        return Origin(self.manifest.run, peer, round * MESSAGES + message)

    def entries(self, commit: Commit) -> Iterator[Entry]:
        """Yield the entries, negated because steps go downhill. Raises ValueError if the codes are invalid."""
        for peer, said in sorted(commit.said.items()):
            try:
                integers = self.coding.integers(said)
            except ValueError as error:
                raise ValueError(f"round {commit.round}: what peer {peer} says are no codes: {error}") from error
            if commit.step * max(int(np.abs(integers).max(initial=0)), 1) * PROBES >= 2**63:
                raise ValueError(f"round {commit.round}: its step {commit.step} is beyond 64 bits")
            integers = integers * -commit.step
            for start in range(0, len(integers), PROBES):
                yield self.origin(peer, commit.round, start // PROBES), integers[start : start + PROBES]
