"""Tiny Shakespeare as character-level language modelling, divided by speaker.

Text: Karpathy, char-rnn, 2015. Task (predict the next character from at most `length` characters; one client per
role): McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fedshare.data.dataset import Dataset, Examples
from fedshare.data.files import find
from fedshare.data.sources import TINY_SHAKESPEARE
from fedshare.errors import UserError

ALPHABET = b"\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # every character in the text
VOCABULARY = 1 + len(ALPHABET)  # 0 is padding, as everywhere
TOKENS = np.zeros(256, np.int64)
TOKENS[list(ALPHABET)] = np.arange(1, VOCABULARY)
NOTHING = np.zeros(0, np.int64)  # the tokens of a speaker without lines
IGNORED = -100  # the target of padding
TEST = 0.2  # the fraction of a speaker's lines used for test: the last ones


def shakespeare(root: str | Path | None = None, *, vocabulary: int = VOCABULARY, length: int) -> Dataset:
    """Return characters, int64 ``[n, length]``, and their successors, int64 ``[n, length]``, -100 where padding.

    `Dataset.owner` numbers the 299 speakers in order of appearance. An example is a stretch of one speaker's lines,
    without names. The last fifth of a speaker's lines, rounded down, is for test. `vocabulary` must be 66: the 65
    characters of the text, and padding.
    """
    if vocabulary != VOCABULARY:
        raise UserError(f"shakespeare: vocabulary is {vocabulary}, it must be {VOCABULARY}")
    return spoken("shakespeare", root, lambda text: TOKENS[np.frombuffer(text, np.uint8)], VOCABULARY, length)


def spoken(
    name: str, root: str | Path | None, encode: Callable[[bytes], np.ndarray], vocabulary: int, length: int
) -> Dataset:
    """Return Tiny Shakespeare as a data set; `encode` maps a stretch of a speaker's lines to int64 tokens."""
    if length < 1:
        raise UserError(f"{name}: length is {length}, it must be at least 1")
    lines = list(read_speakers(find(TINY_SHAKESPEARE, root)["input.txt"]).values())
    cuts = [len(own) - int(len(own) * TEST) for own in lines]
    stretches = [own[:cut] for own, cut in zip(lines, cuts, strict=True)]
    stretches += [own[cut:] for own, cut in zip(lines, cuts, strict=True)]
    parts = [windows(encode(b"".join(line + b"\n" for line in own)) if own else NOTHING, length) for own in stretches]
    x, y = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    sizes = [len(y) for _, y in parts]
    owner = np.tile(np.arange(len(lines)), 2).repeat(sizes)
    return Dataset(name, Examples(x, y), sum(sizes[: len(lines)]), vocabulary, owner)


def read_speakers(path: Path) -> dict[bytes, list[bytes]]:
    """Return each speaker's lines in order. A speech is the speaker's name and a colon, lines, then an empty line."""
    text = path.read_bytes().replace(b"\r\n", b"\n")
    if foreign := set(text) - set(ALPHABET):
        raise UserError(f"{path} is not Tiny Shakespeare: it has the byte {min(foreign):#04x}")
    speakers: dict[bytes, list[bytes]] = {}
    for speech in text.split(b"\n\n"):
        name, *lines = speech.strip(b"\n").split(b"\n")
        if lines and not name.endswith(b":"):
            raise UserError(f"{path} is damaged: a speech begins with {name.decode()!r}, not with a name and a colon")
        if lines:  # some ghosts appear without speaking
            speakers.setdefault(name, []).extend(lines)
    if not speakers:
        raise UserError(f"{path} is damaged: nobody speaks in it")
    return speakers


def windows(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets, int64 ``[n, length]``; every token but the first is a target exactly once."""
    targets = max(len(tokens) - 1, 0)
    x = np.zeros(-(-targets // length) * length, np.int64)
    y = np.full_like(x, IGNORED)
    x[:targets], y[:targets] = tokens[:-1], tokens[1:]
    return x.reshape(-1, length), y.reshape(-1, length)
