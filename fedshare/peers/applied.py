"""The sums of all peers in a simulation: each peer has its own, and what an entry adds is made once for all."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedshare.errors import RunHalted
from fedshare.ledger import Commit
from fedshare.ledger.entries import Entries, Keys
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums

_TOGETHER = 2**22  # integers of entries that are in memory at once
_DENSE = 32  # a product of matrices is faster than sums of chosen rows if more than one row in this many is chosen


class Terms:
    """What entries add to the sums, of as many of the last as there is room for: peers receive an entry in many rounds.

    A cache, because an entry and its ledger's manifest determine it.
    """

    def __init__(self, room: int) -> None:
        self._room = room  # integers
        self._kept = dict[tuple[int, int, bytes, int, str], Tensor]()

    def of(self, head: str, meaning: Meaning, commit: Commit, size: int) -> Tensor:
        """Return the integers, ``[size]``, that a commit of one entry adds; `head` is the manifest's."""
        ((peer, said),) = commit.said.items()
        key = commit.round, peer, said, commit.step, head
        if (found := self._kept.get(key)) is None:
            sums = Sums.zeros(size)
            sums.add(meaning.directions, meaning.entries(commit))
            found = self._kept[key] = sums.values
            while len(self._kept) * size > self._room:
                del self._kept[next(iter(self._kept))]
        return found


_TERMS = Terms(2**26)


def applied(
    meaning: Meaning,
    step: Callable[[int], int],
    sets: dict[int, Entries],
    before: dict[int, NDArray[np.bool_]],
    sums: Tensor,
) -> None:
    """Add to each peer's row of `sums` the entries that count now and did not `before`, and subtract the opposite.

    `step` is that of a round. Raises RunHalted if 64 bits are too few.
    """
    moved = list[tuple[int, int, Keys]]()
    codes = dict[int, bytes]()
    for peer, was in before.items():
        now = sets[peer].counted
        was = np.pad(was, ((0, len(now) - len(was)), (0, 0)))
        for sign, keys in ((1, np.flatnonzero(now & ~was)), (-1, np.flatnonzero(was & ~now))):
            moved.append((peer, sign, keys))
            codes |= {key: sets[peer].code(key) for key in keys.tolist() if key not in codes}
    needed, peers = np.array(sorted(codes), dtype=np.int64), next(iter(sets.values())).peers
    steps = {round: step(round) for round in set((needed // peers).tolist())}
    head = meaning.manifest.head
    block = max(1, _TOGETHER // sums.shape[1])
    for first in range(0, len(needed), block):
        keys = needed[first : first + block]
        table = torch.empty((len(keys), sums.shape[1]), dtype=torch.int64)
        for row, key in zip(table, keys.tolist(), strict=True):
            round, peer = divmod(key, peers)
            row.copy_(_TERMS.of(head, meaning, Commit(round, steps[round], {peer: codes[key]}), sums.shape[1]))
        most = int(table.abs().sum(0).max())
        if int(sums.abs().max()) + most > torch.iinfo(torch.int64).max:
            raise RunHalted("the ledger's sums overflow 64 bits: a smaller step size is required")
        parts = [(peer, sign, np.searchsorted(keys, _between(theirs, keys))) for peer, sign, theirs in moved]
        if most < 2**53 and sum(len(rows) for *_, rows in parts) * _DENSE > len(sums) * len(keys):
            factors = torch.zeros((len(sums), len(keys)), dtype=torch.float64)
            for peer, sign, rows in parts:
                factors[peer, torch.from_numpy(rows)] = sign
            sums += (factors @ table.double()).long()  # exact: no sum is beyond a float64's integers
            continue
        for peer, sign, rows in parts:
            if len(rows):
                sums[peer] += sign * table[torch.from_numpy(rows)].sum(0)


def _between(theirs: Keys, keys: Keys) -> Keys:
    """Return those of `theirs` that lie between the first and the last of `keys`; both ascend."""
    low, high = np.searchsorted(theirs, [keys[0], keys[-1] + 1])
    return theirs[low:high]
