"""Tables of the number of examples of each class per client, ``[clients, classes]``: fitting, rounding, correcting.

These functions are deterministic, do not retry, and always end.
"""

import numpy as np


def cut(weights: np.ndarray, total: int) -> np.ndarray:
    """Divide `total` in proportion to `weights` by differences of the rounded-down cumulative sums."""
    edges = (np.cumsum(weights / weights.sum()) * total).astype(np.int64)
    edges[np.flatnonzero(weights)[-1] :] = total  # the cumulative sum may end at 0.999...
    return np.diff(edges, prepend=0)


def round_columns(quota: np.ndarray) -> np.ndarray:
    """Return `quota` rounded by largest remainders, class by class, keeping the column sums.

    What a client loses in one class is credited to it in the next, so its row sum stays near its quota too; otherwise
    every class of a small client could round to zero.
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
    """Scale rows and columns of `mix` in turn until clients have about `sizes` examples and classes exactly `totals`.

    Iterative proportional fitting: it converges to the table with these sums closest to `mix` (relative entropy).
    """
    quota = mix
    for _ in range(50):
        quota = quota * (sizes / np.maximum(quota.sum(1), 1e-300))[:, None]
        quota = quota * (totals / np.maximum(quota.sum(0), 1e-300))
    return quota


def lift(counts: np.ndarray, least: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Raise every client to at least `least` examples, taken class by class from the client with the largest surplus.

    A client receives classes in proportion to its row of `mix`; if these run out, more of those with the largest `mix`,
    never a class with zero `mix`. So it stays below `least` only if `mix` has zeros or there are too few examples.
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
