"""Masks over tensors that select coordinates. They are sent as bits, eight per byte, the first in the lowest bit."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedshare.machine.threads import spread

_WORDS = 2**10  # of 64 bits, compared at a time so that they stay in the cache


def count(share: float, size: int) -> int:
    """Return ``floor(share * size)`` of the decimal share: 0.29 of 100 is 29, though the float is slightly less."""
    return math.floor(Fraction(str(share)) * size)


def top(scores: Tensor, count: int) -> Tensor:
    """Return a mask of exactly the `count` largest of `scores`; among equal ones, the first."""
    flat = scores.reshape(-1)
    if not 0 < count < len(flat):
        return torch.full(scores.shape, count > 0, dtype=torch.bool)
    cut = flat.kthvalue(len(flat) - count + 1).values
    mask, tied = flat > cut, flat == cut
    mask |= tied & (tied.cumsum(0) <= count - mask.sum())
    return mask.view(scores.shape)


def packed_size(size: int) -> int:
    """Return the number of bytes of a packed mask over `size` coordinates."""
    return (size + 7) // 8


def pack(mask: Tensor) -> Tensor:
    """Return a mask of any shape packed into bits, ``[ceil(size / 8)]`` of uint8."""
    return torch.from_numpy(np.packbits(mask.reshape(-1).numpy(), bitorder="little"))


def unpack(bits: Tensor, size: int) -> Tensor:
    """Return the first `size` coordinates of packed masks: ``[..., bytes]`` to ``[..., size]``, bool."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1, count=size, bitorder="little").view(bool))


def ones(bits: Tensor) -> int:
    """Return the number of bits set."""
    return int(np.bitwise_count(bits.numpy()).sum(dtype=np.int64))


def intersections(masks: Sequence[Tensor]) -> Tensor:
    """Return the number of common coordinates of each pair of packed masks, int64 ``[n, n]``; diagonal: each one's own.

    This is a popcount on 64 bits at a time, for one half of the symmetric matrix.
    """
    n, size = len(masks), len(masks[0])

    def between(start: int) -> np.ndarray:
        words = np.zeros((n, -(-min(8 * _WORDS, size - start) // 8)), dtype=np.uint64)
        for row, mask in zip(words.view(np.uint8), masks, strict=True):
            piece = mask[start : start + 8 * _WORDS].numpy()
            row[: len(piece)] = piece
        common, counts = np.empty_like(words), np.empty(words.shape, dtype=np.uint8)
        shared = np.zeros((n, n), dtype=np.int64)
        for i in range(n):
            np.bitwise_and(words[i], words[i:], out=common[i:])
            np.bitwise_count(common[i:], out=counts[i:])
            shared[i, i:] = counts[i:].sum(axis=1, dtype=np.uint32)
        return shared

    upper = sum(spread(between, range(0, size, 8 * _WORDS)), np.zeros((n, n), dtype=np.int64))
    return torch.from_numpy(upper + np.triu(upper, 1).T)
