"""Tables of how many examples of each class each client gets, ``[clients, classes]``: to fit, to round and to mend.

No function here draws, tries again or can fail to end.
"""

import numpy as np


def cut(weights: np.ndarray, total: int) -> np.ndarray:
    """Divide `total` in proportion to `weights` by cutting a line at the rounded-down running sums."""
    edges = (np.cumsum(weights / weights.sum()) * total).astype(np.int64)
    edges[np.flatnonzero(weights)[-1] :] = total  # the running sum may end at 0.999...
    return np.diff(edges, prepend=0)


def round_columns(quota: np.ndarray) -> np.ndarray:
    """Largest-remainder rounding, class by class; column sums are kept.

    What a client lost in one class counts in its favour in the next, so that its row sum stays near its quota too:
    rounded alone, every class of a small client could come to zero.
    """
    counts = np.floor(quota).astype(np.int64)
    owed = np.zeros(len(quota))
    for column in range(quota.shape[1]):
        part = quota[:, column] - counts[:, column]
        claim = np.where(part > 0, part + owed, -np.inf)
        chosen = np.argsort(-claim, kind="stable")[: round(part.sum())]
        counts[chosen, column] += 1
        part[chosen] -= 1
        owed += part
    return counts


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Divide `total` in proportion to `weights` by largest remainders."""
    return round_columns((total * weights / weights.sum())[:, None])[:, 0]


def fit(mix: np.ndarray, sizes: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Scale rows and columns of `mix` in turn, till clients have about `sizes` examples and classes exactly `totals`.

    Iterative proportional fitting: of all tables with these sums it nears the one closest to `mix` (relative entropy).
    """
    quota = mix
    for _ in range(50):
        quota = quota * (sizes / np.maximum(quota.sum(1), 1e-300))[:, None]
        quota = quota * (totals / np.maximum(quota.sum(0), 1e-300))
    return quota


def lift(counts: np.ndarray, least: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Give everyone at least `least` examples, taken class by class from whoever has most beyond their own `least`.

    A client gets its classes in proportion to its row of `mix`; where they run out, more of those it likes best; never
    one with zero `mix`. So it may stay below `least` only where `mix` has zeros, or where there are too few examples.
    """
    counts, spare = counts.copy(), counts.sum(1) - least
    for client in np.flatnonzero((spare < 0) & (mix.sum(1) > 0)):
        wanted = apportion(mix[client], -spare[client])
        liked = np.argsort(-mix[client], kind="stable")[: np.count_nonzero(mix[client])]
        for column, amount in [*zip(liked, wanted[liked], strict=True), *((c, -spare[client]) for c in liked)]:
            while (missing := min(amount, -spare[client])) > 0:
                giver = np.argmax(np.where(counts[:, column] > 0, spare, 0))
                given = min(missing, spare[giver], counts[giver, column])
                if given <= 0:
                    break
                counts[[giver, client], column] += -given, given
                spare[[giver, client]] += -given, given
                amount -= given
    return counts
