"""The ledger's sums in exact integers, so that no order, batch, thread or device changes a bit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedshare.directions import PROBES, Entry, Origin
from fedshare.errors import RunHalted
from fedshare.ledger.meaning import Directions

_BATCH = 2**30  # magnitudes that are added before the bound is checked


@dataclass
class Sums:
    """One integer per parameter: int32 while they surely fit, then int64, converted automatically."""

    values: Tensor  # of the parameters from `start` on
    bound: int | None = None  # no value has a larger magnitude; None: unknown
    start: int = 0
    size: int | None = None  # of the whole model; None: it ends with these values

    @classmethod
    def zeros(cls, count: int, device: torch.device | str = "cpu", start: int = 0, size: int | None = None) -> "Sums":
        return cls(torch.zeros(count, dtype=torch.int32, device=device), 0, start, size)

    def clone(self) -> "Sums":
        return Sums(self.values.clone(), self.bound)

    def add(self, directions: Directions, entries: Iterable[Entry]) -> None:
        """Add every entry's directions, each times its integer, in place. Raises RunHalted if int64 is too small."""
        for batch, weight in _batches(entries, directions.largest):
            self._make_room(weight)
            directions.accumulate(self.values, batch, self.start, self.size or len(self.values))
            self.bound += weight  # type: ignore[operator]

    def narrow(self) -> Tensor:
        """Return the values as int32 if they fit."""
        small = self.values.dtype == torch.int32 or self._largest() <= torch.iinfo(torch.int32).max
        return self.values.to(torch.int32) if small else self.values

    def _largest(self) -> int:
        low, high = self.values.aminmax() if len(self.values) else (torch.zeros(()),) * 2
        return max(abs(int(low)), abs(int(high)))

    def _make_room(self, weight: int) -> None:
        if self.bound is None or self.bound + weight > torch.iinfo(self.values.dtype).max:
            # The bound assumes that all entries have the same sign, so the actual maximum may be smaller.
            self.bound = self._largest()
        if self.bound + weight > torch.iinfo(torch.int64).max:
            raise RunHalted(f"the ledger's sums overflow: {self.bound} and {weight} are beyond 64 bits")
        if self.bound + weight > torch.iinfo(self.values.dtype).max:
            self.values = self.values.to(torch.int64)


def _batches(entries: Iterable[Entry], largest: int) -> Iterator[tuple[list[Entry], int]]:
    """Yield the entries in batches, and the sum of each batch's magnitudes. Equal directions from a pool are merged."""
    batch, total = dict[Origin, NDArray[np.int64]](), 0
    for origin, integers in entries:
        whole = np.zeros(PROBES, dtype=np.int64)
        whole[: len(integers)] = integers
        weight = largest * sum(map(abs, whole.tolist()))
        if batch and total + weight > _BATCH:
            yield list(batch.items()), total
            batch, total = {}, 0
        batch[origin] = batch[origin] + whole if origin in batch else whole
        total += weight
    if batch:
        yield list(batch.items()), total
