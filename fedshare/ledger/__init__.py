"""A ledger that is a model: the initial model, the bytes sent, and their sums."""

from fedshare.ledger.commit import FORMAT, Commit, Manifest, framed, head_of, number, numbers, unframed

__all__ = ["FORMAT", "Commit", "Manifest", "framed", "head_of", "number", "numbers", "unframed"]
