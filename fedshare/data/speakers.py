"""Tiny Shakespeare by who speaks, as `shakespeare` has it, in the tokens of a language model's own tokenizer."""

from pathlib import Path

import numpy as np

from fedshare.data.characters import spoken
from fedshare.data.dataset import Dataset
from fedshare.data.tokenizer import Tokenizer, fitting


def shakespeare_tokens(
    root: str | Path | None = None, *, tokenizer: Tokenizer, vocabulary: int, length: int
) -> Dataset:
    """Tokens, int64 ``[n, length]``, and the one after each, int64 ``[n, length]``, -100 where that is padding.

    Speakers, their lines and what of them is for test are those of `shakespeare`. What the tokenizer puts at the
    beginning of a text stands once before all of a speaker's training lines, and once before the others.
    """
    known = fitting("shakespeare_tokens", tokenizer, vocabulary)

    def encode(text: bytes) -> np.ndarray:
        return np.array(known.encode(text.decode("ascii")), np.int64)

    return spoken("shakespeare_tokens", root, encode, vocabulary, length)
