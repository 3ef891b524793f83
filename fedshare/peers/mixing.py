"""The weights of a graph: how much each upload counts, and what happens to those of peers that are absent."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from fedshare.errors import UserError
from fedshare.peers.around import Mixing

Senders = Sequence[Sequence[int]]  # by peer, the peers whose uploads it receives, without itself


@dataclass(frozen=True)
class Rule:
    weigh: Callable[[Senders], Mixing]  # the weights when everyone takes part
    without: Callable[[Mixing, Collection[int]], Mixing]  # the weights when only some do; none for the others


def metropolis(links: Senders) -> Mixing:
    """Return 1 / (1 + the larger number of neighbours of the two), and the rest for a peer's own (Xiao et al. 2006).

    The weights of each receiver, and those of each sender, sum to 1. Raises UserError if they cannot.
    """
    degrees = [len(others) for others in links]
    mixing = []
    for peer, others in enumerate(links):
        weights = {other: 1 / (1 + max(degrees[peer], degrees[other])) for other in others}
        mixing.append(_with_own(weights, peer))
    sums = [0.0] * len(links)
    for weights in mixing:
        for sender, weight in weights.items():
            sums[sender] += weight
    if any(abs(total - 1) > 1e-9 for total in sums):
        raise UserError(
            "peers.mixing=metropolis: in this directed graph some peers' uploads would count more than others': "
            "say peers.mixing=push with strategy=push_sum"
        )
    return mixing


def uniform(links: Senders) -> Mixing:
    """Return equal weights for all uploads that a peer receives, its own included."""
    return [_with_own(dict.fromkeys(others, 1 / (1 + len(others))), peer) for peer, others in enumerate(links)]


def push(links: Senders) -> Mixing:
    """Return equal shares of each upload for all who receive it, its sender included: those of a sender sum to 1."""
    receivers = [1] * len(links)
    for others in links:
        for sender in others:
            receivers[sender] += 1
    return [{sender: 1 / receivers[sender] for sender in sorted([*others, peer])} for peer, others in enumerate(links)]


def to_receivers(mixing: Mixing, present: Collection[int]) -> Mixing:
    """Add the weight of a missing upload to the receiver's own, so that each receiver's still sum to 1."""
    kept = []
    for peer, weights in enumerate(mixing):
        own: dict[int, float] = {}
        if peer in present:
            own = {sender: weight for sender, weight in weights.items() if sender in present}
            own[peer] = 1 - sum(weight for sender, weight in own.items() if sender != peer)
        kept.append(own)
    return kept


def to_senders(mixing: Mixing, present: Collection[int]) -> Mixing:
    """Leave the share of an absent receiver with the sender, so that each sender's still sum to 1."""
    kept = [{sender: weight for sender, weight in weights.items() if sender in present} for weights in mixing]
    for peer, weights in enumerate(kept):
        if peer not in present:
            for sender, weight in weights.items():
                kept[sender][sender] += weight
            kept[peer] = {}
    return kept


RULES = {
    "metropolis": Rule(metropolis, to_receivers),
    "uniform": Rule(uniform, to_receivers),
    "push": Rule(push, to_senders),
}


def _with_own(weights: dict[int, float], peer: int) -> dict[int, float]:
    return dict(sorted((weights | {peer: 1 - sum(weights.values())}).items()))
