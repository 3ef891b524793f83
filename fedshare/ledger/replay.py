"""A model from its ledger alone: what the initial vector and the commits make, with everyone's entries or without some.

What is left out is what a peer has said; the others' bytes stay as they are, measured on models in which it had its
say.
"""

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from fedshare.directions.perturb import settle
from fedshare.ledger.commit import Commit
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums

PIECE = 2**24  # parameters whose sums there are at a time


def replay(meaning: Meaning, commits: Sequence[Commit], initial: Tensor, vector: Tensor) -> None:
    """Make `vector` the model after `commits`. It may be the initial one: beside it there are only a piece's sums.

    Raises ValueError where the codes are none, and RunHalted where their sums are beyond 64 bits.
    """
    for start in range(0, len(vector), PIECE):
        piece = slice(start, start + PIECE)
        sums = Sums.zeros(len(vector[piece]), vector.device, start, len(vector))
        sums.add(meaning.directions, (entry for commit in commits for entry in meaning.entries(commit)))
        settle(vector[piece], initial[piece], sums.values, meaning.manifest.fraction)


def count(meaning: Meaning, commits: Iterable[Commit]) -> int:
    """How many entries the commits have."""
    return sum(len(meaning.coding.integers(said)) for commit in commits for said in commit.said.values())


def parted(commits: Iterable[Commit], peers: Collection[int], since: int) -> tuple[list[Commit], list[Commit]]:
    """The commits without what `peers` have said from the round `since` on, and what they have said then, alone."""
    kept, taken = [], []
    for commit in commits:
        theirs = {peer: said for peer, said in commit.said.items() if peer in peers and commit.round >= since}
        others = {peer: said for peer, said in commit.said.items() if peer not in theirs}
        kept.append(Commit(commit.round, commit.step, others))
        if theirs:
            taken.append(Commit(commit.round, commit.step, theirs))
    return kept, taken
