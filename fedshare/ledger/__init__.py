"""A ledger that is a model: what it starts from, the bytes that were sent, and what they add up to."""

from fedshare.ledger.commit import FORMAT, Commit, Manifest, framed, head_of, number, numbers, unframed

__all__ = ["FORMAT", "Commit", "Manifest", "framed", "head_of", "number", "numbers", "unframed"]
