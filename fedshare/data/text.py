"""From sentences to tokens: a vocabulary of the training part's most frequent words, and texts of one length."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from fedshare.data.dataset import Dataset, Examples
from fedshare.errors import UserError

PADDING, UNKNOWN = 0, 1  # the tokens that are no word
Texts = tuple[list[str], list[int]]  # sentences with spaces between their words, and labels


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a file, without empty ones. Raise `UserError` where it is not text in this encoding."""
    try:
        text = path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not {encoding} text: {error.reason} at byte {error.start}") from error
    # splitlines() would split at more than this.
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def words(sentence: str) -> list[str]:
    return sentence.lower().split()


def build_vocabulary(sentences: Iterable[list[str]], size: int, min_count: int) -> dict[str, int]:
    """Words to tokens below `size`: the most frequent that occur `min_count` times, ties in alphabetical order."""
    counts = Counter(chain.from_iterable(sentences))
    kept = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    return {word: token for token, word in enumerate(kept[: size - 2], start=2)}


def encode(sentences: list[list[str]], vocabulary: dict[str, int], length: int) -> torch.Tensor:
    """Tokens, int64 ``[n, length]``: longer texts are cut off, shorter ones padded at their end."""
    tokens = np.full((len(sentences), length), PADDING, np.int64)
    for row, sentence in zip(tokens, sentences, strict=True):
        known = [vocabulary.get(word, UNKNOWN) for word in sentence[:length]]
        row[: len(known)] = known
    return torch.from_numpy(tokens)


def classification(
    name: str, train: Texts, test: Texts, *, classes: int, vocabulary: int, length: int, min_count: int
) -> Dataset:
    """The data set of labelled sentences: tokens below `vocabulary`, int64 ``[n, length]``, and their labels."""
    for argument, value, least in (("vocabulary", vocabulary, 3), ("length", length, 1), ("min_count", min_count, 1)):
        if value < least:
            raise UserError(f"{name}: {argument} is {value}, it must be at least {least}")
    if not train[0] or not test[0]:
        raise UserError(
            f"{name}: {len(train[0])} training and {len(test[0])} test sentences, where neither may be none"
        )
    sentences = [words(sentence) for sentence in train[0] + test[0]]
    known = build_vocabulary(sentences[: len(train[0])], vocabulary, min_count)
    y = torch.tensor(train[1] + test[1], dtype=torch.int64)
    return Dataset(name, Examples(encode(sentences, known, length), y), len(train[0]), classes)
