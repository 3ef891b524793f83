"""Rebuilding a model from its ledger alone: the initial vector plus all commits, with or without some peers' entries.

Leaving a peer out removes only its own entries; the others' bytes stay as they are, though they were measured on models
that it had influenced.
"""

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from fedshare.directions.perturb import settle
from fedshare.ledger.commit import Commit
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums

PIECE = 2**24  # parameters whose sums are in memory at a time


def replay(meaning: Meaning, commits: Sequence[Commit], initial: Tensor, vector: Tensor) -> None:
    """Set `vector` to the model after `commits`. It may be the initial vector; memory is needed for one piece's sums.

    Raises ValueError if codes are invalid, and RunHalted if their sums exceed 64 bits.
    """
    for start in range(0, len(vector), PIECE):
        piece = slice(start, start + PIECE)
        sums = Sums.zeros(len(vector[piece]), vector.device, start, len(vector))
        sums.add(meaning.directions, (entry for commit in commits for entry in meaning.entries(commit)))
        settle(vector[piece], initial[piece], sums.values, meaning.manifest.fraction)


def count(meaning: Meaning, commits: Iterable[Commit]) -> int:
    """Return the number of entries in the commits."""
    return sum(len(meaning.coding.integers(said)) for commit in commits for said in commit.said.values())


def parted(commits: Iterable[Commit], peers: Collection[int], since: int) -> tuple[list[Commit], list[Commit]]:
    """Return the commits without the entries of `peers` from round `since` on, and those entries as commits."""
    kept, taken = [], []
    for commit in commits:
        theirs = {peer: said for peer, said in commit.said.items() if peer in peers and commit.round >= since}
        others = {peer: said for peer, said in commit.said.items() if peer not in theirs}
        kept.append(Commit(commit.round, commit.step, others))
        if theirs:
            taken.append(Commit(commit.round, commit.step, theirs))
    return kept, taken
