"""A model as its ledger has it: the integers, and the vector of parameters that shows them."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedshare.directions import Origin
from fedshare.directions.perturb import settle
from fedshare.ledger.commit import Commit
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import Transcript

TOGETHER = 2**20  # numbers in all displaced copies of a model that are evaluated at once


class Replica:
    """One of the models that a process shows in turn, all of one ledger at about the same round.

    It is a cache, and so belongs to no participant: what it holds follows from a transcript.
    """

    def __init__(self, meaning: Meaning, vector: Tensor, initial: Tensor) -> None:
        self.meaning = meaning
        self._vector, self._initial = vector, initial
        self._head, self._sums = meaning.manifest.head, Sums.zeros(len(vector), vector.device)

    def follow(self, transcript: Transcript, ways: dict[str, list[Commit]]) -> None:
        """Have the sums of `transcript`: by what is to come from here on, where `ways` knows, or from its snapshot."""
        if (new := ways.get(self._head)) is None:
            sums = transcript.sums
            self._sums = (
                Sums(sums.to(self._vector.device, copy=True))
                if sums is not None
                else Sums.zeros(len(self._vector), self._vector.device)
            )
            new = list(transcript.entries())
        self._head = ""  # where adding ends half-way, they are those of no ledger
        self._sums.add(self.meaning.directions, (entry for commit in new for entry in self.meaning.entries(commit)))
        self._head = transcript.head

    def sums(self) -> Tensor:
        """In as few bits as they fit into, whatever came before them. Not to be changed, and soon others."""
        return self._sums.narrow().cpu()

    def show(self) -> None:
        """Make the vector what the ledger says."""
        settle(self._vector, self._initial, self._sums.values, self.meaning.manifest.fraction)

    def probe(
        self,
        origin: Origin,
        probes: int,
        epsilon: float,
        size: int,
        loss: Callable[[], Tensor],
        losses: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The losses ``[probes, 2]``, float64, an `epsilon` up and down each of a message's directions.

        `loss` is at the vector, `losses` at several ``[n, parameters]`` at once, which is faster for models of a small
        `size`, of which the vector may be a part. It is what the ledger says afterwards, to the bit, as it was.
        """
        directions = self.meaning.directions
        drawn = directions.draw(origin, len(self._vector), self._vector.device)
        if 2 * probes * size <= TOGETHER:
            copies = self._vector.repeat(2 * probes, 1)
            for place, copy in enumerate(copies):
                directions.displace(copy, drawn, _one(place // 2, -epsilon if place % 2 else epsilon))
            try:
                return losses(copies).double().cpu().view(probes, 2)
            finally:
                self.show()
        found, here = torch.empty(probes, 2, dtype=torch.float64), [0.0] * probes
        try:
            for probe in range(probes):
                for side, step in enumerate((epsilon, -epsilon)):
                    there = _one(probe, step) + [0.0] * (probes - probe - 1)
                    # In one pass from there to here, the last probe's direction and this one's.
                    directions.displace(self._vector, drawn, [b - a for a, b in zip(here, there, strict=True)])
                    found[probe, side] = loss()
                    here = there
        finally:
            self.show()
        return found


def _one(probe: int, step: float) -> list[float]:
    return [0.0] * probe + [step]
