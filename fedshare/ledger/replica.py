"""A model computed from its ledger: the integer sums, and the parameter vector made from them."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedshare.directions import Origin
from fedshare.directions.perturb import settle
from fedshare.ledger.commit import Commit
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import Transcript

TOGETHER = 2**20  # elements of all displaced copies of a model that are evaluated at once


class Replica:
    """The model of the participants of one ledger, all at about the same round; each writes it to its own vector.

    It is a cache that belongs to no participant, because a transcript determines its contents.
    """

    def __init__(self, meaning: Meaning, initial: Tensor) -> None:
        self.meaning, self._initial = meaning, initial
        self._head, self._sums = meaning.manifest.head, Sums.zeros(len(initial), initial.device)

    def follow(self, transcript: Transcript, ways: dict[str, list[Commit]]) -> None:
        """Update the sums to `transcript`, by the commits in `ways` after the current head, or from its snapshot."""
        if (new := ways.get(self._head)) is None:
            sums = transcript.sums
            self._sums = (
                Sums(sums.to(self._initial.device, copy=True))
                if sums is not None
                else Sums.zeros(len(self._initial), self._initial.device)
            )
            new = list(transcript.entries())
        self._head = ""  # if adding fails half-way, the sums match no ledger
        self._sums.add(self.meaning.directions, (entry for commit in new for entry in self.meaning.entries(commit)))
        self._head = transcript.head

    def sums(self) -> Tensor:
        """Return the sums in the smallest type that holds them. Read only, and valid until the next change."""
        return self._sums.narrow().cpu()

    def show(self, vector: Tensor) -> None:
        """Set `vector` to the ledger's model."""
        settle(vector, self._initial, self._sums.values, self.meaning.manifest.fraction)

    def probe(
        self,
        vector: Tensor,
        origin: Origin,
        probes: int,
        epsilon: float,
        size: int,
        loss: Callable[[], Tensor],
        losses: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the losses ``[probes, 2]``, float64, at plus and minus `epsilon` along each of a message's directions.

        `loss` is at `vector`, `losses` at several ``[n, parameters]`` at once, which is faster for models of a small
        `size`, of which the vector may be a part. Afterwards `vector` is the ledger's model again, to the bit.
        """
        directions = self.meaning.directions
        drawn = directions.draw(origin, len(vector), vector.device)
        if 2 * probes * size <= TOGETHER:
            copies = vector.repeat(2 * probes, 1)
            for place, copy in enumerate(copies):
                directions.displace(copy, drawn, _one(place // 2, -epsilon if place % 2 else epsilon))
            try:
                return losses(copies).double().cpu().view(probes, 2)
            finally:
                self.show(vector)
        found, here = torch.empty(probes, 2, dtype=torch.float64), [0.0] * probes
        try:
            for probe in range(probes):
                for side, step in enumerate((epsilon, -epsilon)):
                    there = _one(probe, step) + [0.0] * (probes - probe - 1)
                    # One pass removes the last probe's direction and adds this one's.
                    directions.displace(vector, drawn, [b - a for a, b in zip(here, there, strict=True)])
                    found[probe, side] = loss()
                    here = there
        finally:
            self.show(vector)
        return found


def _one(probe: int, step: float) -> list[float]:
    return [0.0] * probe + [step]
