"""Directions on torch tensors of any device: drawn, added to parameters, summed, and applied to a model.

The bits are the same on every device and with any number of threads, because float sums have a fixed order.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedshare.directions import accelerator, message
from fedshare.directions.message import PROBES, SIGNS, Entry, Origin

_BLOCK, _SETTLED = 2**17, 2**16  # parameters at a time
_FOURS = 0x03030303  # two bits of each of four bytes
_GATHER = 1 << 24 | 1 << 18 | 1 << 12 | 1 << 6  # a factor that gathers them in the upper byte, without overlap


def draw(origin: Origin, count: int, device: torch.device | str) -> Tensor:
    """Return the message's random bytes for the first `count` parameters."""
    message.check_range(0, count)
    device = torch.device(device)
    if device.type != "cpu":
        return accelerator.draw(origin, count, device)
    random = np.empty(count, dtype=np.uint8)
    message.over(count, lambda piece: message.fill(random[slice(*piece)], origin, piece[0]))
    return torch.from_numpy(random)


def displace(vector: Tensor, random: Tensor, coefficients: Sequence[float]) -> None:
    """Add the probes' directions for the message's bytes `random`, each times its coefficient, to `vector`.

    They are summed first, in the order of the probes, in the vector's type, or float32 if that has fewer bits.
    """
    if vector.dim() != 1 or not vector.is_floating_point():
        raise TypeError(f"a vector of floats is displaced, not {vector.dtype} of {tuple(vector.shape)}")
    if random.dtype != torch.uint8 or random.shape != vector.shape or random.device != vector.device:
        raise ValueError(f"no random byte on {vector.device} for each of {len(vector)} parameters")
    dtype = np.dtype(np.float64 if vector.dtype == torch.float64 else np.float32)
    numbers = np.array([float(coefficient) for coefficient in coefficients], dtype=dtype)
    if len(numbers) > PROBES:
        raise ValueError(f"{len(numbers)} coefficients for {PROBES} probes")
    vector = vector.detach()
    if not numbers.any():
        return
    if vector.device.type != "cpu":
        accelerator.displace(vector, random, torch.from_numpy(_table(numbers)).to(vector.device))
        return

    def add(piece: tuple[int, int]) -> None:
        part, drawn = vector[slice(*piece)], random[slice(*piece)].numpy()
        if vector.dtype in (torch.float32, torch.float64):
            _displace(part.numpy(), drawn, numbers)
            return
        for block, bytes_ in zip(part.split(_BLOCK), np.split(drawn, range(_BLOCK, len(drawn), _BLOCK)), strict=True):
            wide = block.float()
            _displace(wide.numpy(), bytes_, numbers)
            block.copy_(wide)

    message.over(len(vector), add)


def accumulate(into: Tensor, entries: Sequence[Entry], start: int = 0) -> None:
    """Like `message.accumulate`, for tensors."""
    if into.dim() != 1 or into.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"integers are summed in a vector of int32 or int64, not {into.dtype} of {tuple(into.shape)}")
    if into.device.type == "cpu":
        message.accumulate(into.numpy(), entries, start)
        return
    message.check_range(start, len(into))
    dtype = np.dtype(np.int32 if into.dtype == torch.int32 else np.int64)
    tables = [(origin, message.byte_table(integers, dtype)) for origin, integers in entries]
    accelerator.accumulate(into, tables, start)


def settle(vector: Tensor, initial: Tensor, sums: Tensor, fraction: int) -> None:
    """Set `vector` to ``initial + sums * 2**-fraction``, in float64, rounded once to the vector's type."""
    if sums.dtype not in (torch.int32, torch.int64) or not 0 <= fraction < 64:
        raise ValueError(f"sums are int32 or int64 with 0 to 63 bits of fraction, not {sums.dtype} with {fraction}")
    if vector.dim() != 1 or not vector.shape == initial.shape == sums.shape:
        raise ValueError(f"vectors of {[tuple(each.shape) for each in (vector, initial, sums)]}")
    vector, initial = vector.detach(), initial.detach()
    size = _SETTLED if vector.device.type == "cpu" else 64 * _SETTLED

    def set_(piece: tuple[int, int]) -> None:
        parts = (each[slice(*piece)].split(size) for each in (vector, initial, sums))
        for part, from_, sum_ in zip(*parts, strict=True):
            exact = sum_.double()
            exact *= 2.0**-fraction
            exact += from_
            part.copy_(exact if vector.dtype in (torch.float32, torch.float64) else _odd(exact))

    if vector.device.type == "cpu":
        message.over(len(vector), set_)
    else:
        set_((0, len(vector)))


def _odd(exact: Tensor) -> Tensor:
    """Return `exact` in float32, rounded to odd: an inexact value becomes the neighbour whose last bit is 1.

    Torch rounds float64 to 16 bits by way of float32, twice. After this, the second rounding gives what a single one
    would.
    """
    near = exact.float()
    bits = near.view(torch.int32)
    inexact = near != exact
    bits -= (near.abs() > exact.abs()).int()
    bits |= inexact.int()
    return near


def _displace(vector: NDArray[np.floating], random: NDArray[np.uint8], numbers: NDArray[np.floating]) -> None:
    (probes,) = numbers.nonzero()
    kernels = message.compiled(len(vector))
    if kernels and len(probes) <= 2:
        masks, two = np.zeros(2, dtype=np.uint8), np.zeros(2, dtype=numbers.dtype)
        masks[: len(probes)], two[: len(probes)] = 1 << probes, numbers[probes]
        kernels.displace(vector, random, masks, *two)
    elif kernels:
        kernels.look_up(vector, random, _table(numbers))
    else:
        fours = 0
        if vector.dtype == np.float32 and probes[-1] - probes[0] <= 1:
            fours = len(vector) // 4 * 4
            _displace_fours(vector[:fours], random[:fours], int(min(probes[0], PROBES - 2)), numbers)
        table = _table(numbers)
        for start in range(fours, len(vector), _BLOCK):
            vector[start : start + _BLOCK] += table.take(random[start : start + _BLOCK])


def _displace_fours(
    vector: NDArray[np.floating], random: NDArray[np.uint8], probe: int, numbers: NDArray[np.floating]
) -> None:
    """Look up four parameters at once, because numpy's cost is per lookup. Uses only `probe` and the next one."""
    two = np.zeros(2, dtype=np.float32)
    two[: len(numbers[probe:])] = numbers[probe : probe + 2]
    table = _table(two)[np.arange(256)[:, None] >> np.arange(0, 8, 2) & 3].view(np.complex128)[:, 0]
    for start in range(0, len(vector), _BLOCK):
        index = np.ascontiguousarray(random[start : start + _BLOCK]).view("<u4") >> probe
        index &= _FOURS
        index *= _GATHER
        index >>= 24
        vector[start : start + _BLOCK] += table.take(index).view(np.float32)


def _table(numbers: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return what is added for each random byte."""
    table = np.zeros(256, dtype=numbers.dtype)
    for number, sign in zip(numbers, SIGNS[: len(numbers)], strict=True):
        table += number * sign.astype(numbers.dtype)
    return table
