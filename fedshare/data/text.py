"""From sentences to tokens: the training part's most frequent words or a tokenizer's; and padding to one length."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from fedshare.data.dataset import Dataset, Examples
from fedshare.data.tokenizer import Tokenizer, fitting
from fedshare.errors import UserError

PADDING, UNKNOWN = 0, 1  # the tokens that are not words
Texts = tuple[list[str], list[int]]  # sentences with spaces between their words, and labels


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Return the nonempty lines of a file. Raise `UserError` if it is not text in this encoding."""
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not {encoding} text: {error.reason} at byte {error.start}") from error
    # splitlines() splits at more characters than this.
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def words(sentence: str) -> list[str]:
    return sentence.lower().split()


def build_vocabulary(sentences: Iterable[list[str]], size: int, min_count: int) -> dict[str, int]:
    """Return words with tokens below `size`: the most frequent that occur `min_count` times, ties alphabetically."""
    counts = Counter(chain.from_iterable(sentences))
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    return {word: token for token, word in enumerate(kept[: size - 2], start=2)}


def pad(texts: list[list[int]], length: int) -> torch.Tensor:
    """Return tokens, int64 ``[n, length]``: longer texts are cut, shorter ones padded at the end."""
    tokens = np.full((len(texts), length), PADDING, np.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text[:length]
    return torch.from_numpy(tokens)


def classification(
    name: str,
    train: Texts,
    test: Texts,
    *,
    classes: int,
    vocabulary: int,
    length: int,
    min_count: int,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """Return labelled sentences as a data set: tokens below `vocabulary`, int64 ``[n, length]``, and labels.

    Tokens are the training part's most frequent words with at least `min_count` occurrences, or a `tokenizer`'s.
    """
    for argument, value, least in (("vocabulary", vocabulary, 3), ("length", length, 1), ("min_count", min_count, 1)):
        if value < least:
            raise UserError(f"{name}: {argument} is {value}, it must be at least {least}")
    if not train[0] or not test[0]:
        raise UserError(
            f"{name}: {len(train[0])} training and {len(test[0])} test sentences, where neither may be none"
        )
    y = torch.tensor(train[1] + test[1], dtype=torch.int64)
    if tokenizer:
        tokens = [fitting(name, tokenizer, vocabulary).encode(sentence) for sentence in train[0] + test[0]]
    else:
        sentences = [words(sentence) for sentence in train[0] + test[0]]
        known = build_vocabulary(sentences[: len(train[0])], vocabulary, min_count)
        tokens = [[known.get(word, UNKNOWN) for word in sentence[:length]] for sentence in sentences]
    return Dataset(name, Examples(pad(tokens, length), y), len(train[0]), classes)
