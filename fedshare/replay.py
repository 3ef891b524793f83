"""A model from its ledger alone: what the initial vector and the commits make, with everyone's entries or without some.

Sums are integers, so that taking entries off again gives what a ledger gives that never had them, to the bit. What is
left out is what a peer has said; the others' bytes stay as they are, measured on models in which it had its say.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedshare.ledger import Commit
from fedshare.meaning import Meaning
from fedshare.perturb import settle
from fedshare.sums import Sums


def replay(meaning: Meaning, commits: Sequence[Commit], initial: Tensor) -> Tensor:
    """The model after `commits`, in the place of the initial one: beside it there are only the sums.

    Those are as large as float32 parameters, or twice that. Raises ValueError where the codes are none.
    """
    sums = summed(meaning, commits, len(initial), initial.device)
    settle(initial, initial, sums.values, meaning.manifest.fraction)
    return initial


def summed(
    meaning: Meaning, commits: Sequence[Commit], size: int, device: torch.device | str = "cpu", spare: int = 0
) -> Sums:
    """The sums of all commits, wide enough for entries whose `bound` is `spare` beside.

    They have their width from the beginning: while they become wider, they would be there twice.
    """
    narrow = bound(meaning, commits) + spare <= torch.iinfo(torch.int32).max
    sums = Sums(torch.zeros(size, dtype=torch.int32 if narrow else torch.int64, device=device), 0)
    sums.add(meaning.directions, (entry for commit in commits for entry in meaning.entries(commit)))
    return sums


def take_off(meaning: Meaning, sums: Sums, commits: Iterable[Commit]) -> None:
    """Undo the commits, in place."""
    entries = (entry for commit in commits for entry in meaning.entries(commit))
    sums.add(meaning.directions, ((origin, -np.asarray(integers)) for origin, integers in entries))


def bound(meaning: Meaning, commits: Iterable[Commit]) -> int:
    """No sum of theirs has a larger magnitude. Raises ValueError where codes are none, or a step is beyond 64 bits."""
    total = 0
    for commit in commits:
        for peer, said in commit.said.items():
            try:
                magnitudes = np.abs(meaning.coding.integers(said))
            except ValueError as error:
                raise ValueError(f"round {commit.round}: what peer {peer} says are no codes: {error}") from error
            if commit.step * int(magnitudes.max(initial=0)) >= 2**63:
                raise ValueError(f"round {commit.round}: its step {commit.step} is beyond 64 bits")
            total += meaning.directions.largest * commit.step * int(magnitudes.sum())
    return total


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
