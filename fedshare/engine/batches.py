"""The batches of several clients side by side, short ones padded."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedshare.data.dataset import Examples, Inputs, mapped, parts
from fedshare.engine.plans import Batch

WINDOW = 1 << 26  # bytes of examples that are gathered at once
SPARE = 2  # so many times the rows that a fit uses are copied at once, which is faster than client by client


class Batches:
    """`rows`: of each client, the row indices of each of its batches in its own examples; the longest lists first.

    The examples are on `device`, and so are the batches. These are padded to the longest, or to `width`.
    """

    def __init__(
        self, examples: Sequence[Examples], rows: Sequence[list[Tensor]], device: torch.device, width: int = 0
    ) -> None:
        self._examples, self._device = examples, device
        self.sizes = [[len(some) for some in each] for each in rows]
        self.steps = max(map(len, self.sizes), default=0)
        # How many clients, the first ones, have a batch in each step.
        self.active = [sum(len(sizes) > step for sizes in self.sizes) for step in range(self.steps)]
        self._width = max(width, max((max(sizes, default=0) for sizes in self.sizes), default=0))
        self._pooled, self._offsets = pooled(examples, sum(map(sum, self.sizes)))
        self._index = torch.stack([self._padded(each) for each in rows])
        counts = [] if self._even() else [torch.stack([self._counted(sizes) for sizes in self.sizes])]
        self._counts = [each.to(device) for each in counts]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batch of each step: the active clients' first, perhaps followed by others that do not count.

        The number of clients takes few values, so that few plans are needed.
        """
        everyone = len(self._examples)
        window = max(1, WINDOW // max(1, everyone * self._width * self._row_bytes()))
        for start in range(0, self.steps, window):
            inputs, targets = self._gathered(self._index[:, start : start + window])
            for place in range(targets.shape[1]):
                clients = min(everyone, 1 << (self.active[start + place] - 1).bit_length())
                counts = tuple(each[:clients, start + place] for each in self._counts)
                cut = mapped(lambda part: part[:clients, place], inputs)  # noqa: B023  # called at once
                yield Batch(cut, targets[:clients, place], counts)

    def _even(self) -> bool:
        return all(sizes == [self._width] * self.steps for sizes in self.sizes)

    def _padded(self, rows: list[Tensor]) -> Tensor:
        """Return one client's row indices ``[steps, width]``, padded with its first row."""
        found = torch.zeros(self.steps, self._width, dtype=torch.int64)
        if rows and all(len(some) == self._width for some in rows):
            found[: len(rows)] = torch.stack(rows)
        else:
            for step, some in enumerate(rows):
                found[step, : len(some)] = some
        return found

    def _counted(self, sizes: list[int]) -> Tensor:
        """Return which of one client's rows are not padding, ``[steps, width]``."""
        ends = torch.tensor(sizes + [0] * (self.steps - len(sizes)))
        return torch.arange(self._width) < ends[:, None]

    def _row_bytes(self) -> int:
        inputs, targets = self._examples[0].batch(slice(0, 1))
        return sum(part.nbytes for part in (*parts(inputs), targets))

    def _gathered(self, index: Tensor) -> tuple[Inputs, Tensor]:
        """Return the examples at ``[clients, steps, width]``, in that shape."""
        shaped = lambda part: part.view(*index.shape, *part.shape[1:])  # noqa: E731
        if self._pooled is None:
            there = index.to(self._device)
            found = [mine.batch(rows.reshape(-1)) for mine, rows in zip(self._examples, there, strict=True)]
            columns = zip(*((*parts(inputs), targets) for inputs, targets in found), strict=True)
            whole = iter([shaped(torch.cat(column)) for column in columns])
            return mapped(lambda _: next(whole), found[0][0]), next(whole)
        inputs, targets = self._pooled.batch((index + self._offsets).reshape(-1).to(self._device))
        return mapped(shaped, inputs), shaped(targets)


def pooled(examples: Sequence[Examples], rows: int) -> tuple[Examples | None, Tensor]:
    """Return all clients' examples as one, and where each client's begin, if few of them are not used for `rows`."""
    lengths = torch.tensor([len(mine) for mine in examples])
    ends = lengths.cumsum(0)
    first = examples[0]
    alike = all(type(mine) is Examples and (mine.mean, mine.std) == (first.mean, first.std) for mine in examples)
    if not alike or int(ends[-1]) > SPARE * rows:
        return None, ends
    columns = zip(*((*parts(mine.x), mine.y) for mine in examples), strict=True)
    whole = iter([torch.cat(column) for column in columns])
    inputs = mapped(lambda _: next(whole), first.x)
    return Examples(inputs, next(whole), first.mean, first.std), (ends - lengths).view(-1, 1, 1)
