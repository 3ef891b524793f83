"""`message` and `perturb` on torch tensors of any device, for GPUs: the same bits, drawn where they are used.

Philox's products are 64-bit, which int64 can hold: it overflows like unsigned numbers, and only the right shift needs a
mask. On CUDA the work on a chunk is compiled; otherwise each operation would write its results to memory.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedshare.directions.message import Origin
from fedshare.directions.philox import MULTIPLIERS, ROUNDS, STEPS, WORD

CHUNK = 2**22  # parameters at a time; bounds the memory where nothing is compiled


def draw(origin: Origin, count: int, device: torch.device) -> Tensor:
    """Return the message's random bytes for the first `count` parameters."""
    out = torch.empty(count, dtype=torch.uint8, device=device)
    message, work = _messages([origin], device)[0], _for(device, _bytes)
    for first, last in _chunks(0, count):
        out[first:last] = work(_places(first, last, device), message)[: last - first]
    return out


def accumulate(into: Tensor, entries: Sequence[tuple[Origin, np.ndarray]], start: int) -> None:
    """Add each entry's table value for its random bytes to `into`, the parameters from `start` on."""
    messages = _messages([origin for origin, _ in entries], into.device)
    tables = [torch.from_numpy(table).to(into.device) for _, table in entries]
    work = _for(into.device, _add)
    for first, last in _chunks(start, start + len(into)):
        places, part = _places(first, last, into.device), into[first - start : last - start]
        for message, table in zip(messages, tables, strict=True):
            work(part, places, first % 16, message, table)


def displace(vector: Tensor, random: Tensor, table: Tensor) -> None:
    """Add the `table` value for each random byte, computed in the table's type and rounded once to the vector's."""
    work = _for(vector.device, _displace)
    for part, drawn in zip(vector.split(CHUNK), random.split(CHUNK), strict=True):
        work(part, drawn, table)


def _displace(vector: Tensor, random: Tensor, table: Tensor) -> None:
    vector.copy_(vector.to(table.dtype) + table[random.int()])


def _add(into: Tensor, places: Tensor, skip: int, message: Tensor, table: Tensor) -> None:
    into += table[_bytes(places, message)[skip : skip + len(into)].int()]


def _bytes(places: Tensor, message: Tensor) -> Tensor:
    """Return the random bytes of these groups of sixteen parameters."""
    even, odd, b, c, d = message.unbind()
    a = places
    for _ in range(ROUNDS):
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, c = right >> 32 & WORD ^ b ^ even, left >> 32 & WORD ^ d ^ odd
        b, d = right & WORD, left & WORD
        even, odd = even + STEPS[0] & WORD, odd + STEPS[1] & WORD
    words = torch.stack([a, b, c, d], dim=1)
    shifts = torch.arange(0, 32, 8, device=places.device)
    return (words[:, :, None] >> shifts & 255).to(torch.uint8).view(-1)


def _messages(origins: Sequence[Origin], device: torch.device) -> Tensor:
    return torch.tensor([origin.words for origin in origins], dtype=torch.int64, device=device).view(-1, 5)


def _places(first: int, last: int, device: torch.device) -> Tensor:
    return torch.arange(first // 16, -(-last // 16), device=device)


def _chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    for first in range(start - start % 16, end, CHUNK):
        yield max(first, start), min(first + CHUNK, end)


def _for(device: torch.device, work: Callable[..., Any]) -> Callable[..., Any]:
    return _compiled(work) if device.type == "cuda" else work


@cache
def _compiled(work: Callable[..., Any]) -> Any:
    return torch.compile(work, dynamic=True)  # otherwise the last chunk of each model would be recompiled
