"""Tiny Shakespeare by speaker, as in `shakespeare`, in the tokens of a language model's own tokenizer."""

from pathlib import Path

import numpy as np

from fedshare.data.characters import spoken
from fedshare.data.dataset import Dataset
from fedshare.data.tokenizer import Tokenizer, fitting


def shakespeare_tokens(
    root: str | Path | None = None, *, tokenizer: Tokenizer, vocabulary: int, length: int
) -> Dataset:
    """Return tokens, int64 ``[n, length]``, and their successors, int64 ``[n, length]``, -100 where padding.

    Speakers, lines and test split are those of `shakespeare`. The tokens that the tokenizer puts at the beginning of a
    text appear once before all of a speaker's training lines and once before its test lines.
    """
    known = fitting("shakespeare_tokens", tokenizer, vocabulary)

    def encode(text: bytes) -> np.ndarray:
        return np.array(known.encode(text.decode("ascii")), np.int64)

    return spoken("shakespeare_tokens", root, encode, vocabulary, length)
