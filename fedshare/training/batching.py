"""Batches: the examples of each step, in passes over a client's examples."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

LastBatch = Literal["join", "drop", "keep"]


def sizes(count: int, batch_size: int | None, last: LastBatch) -> list[int]:
    """Return the batch sizes of one pass over `count` examples; if `batch_size` is None, there is one batch.

    For a short last batch, ``join`` adds a single example to the previous batch, ``drop`` drops any short batch, and
    ``keep`` keeps it. An only batch is always kept.
    """
    size = batch_size or max(count, 1)
    found = [size] * (count // size) + [count % size] * (count % size > 0)
    if len(found) > 1 and found[-1] < size:
        if last == "drop":
            found.pop()
        elif last == "join" and found[-1] == 1:
            found[-2:] = [size + 1]
    return found


def passes(pieces: list[int], steps: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of `steps` batches of the sizes `pieces`, pass after pass, each pass in a new random order."""
    while steps > 0 and pieces:
        rows = torch.randperm(count, generator=generator)
        if pieces == [count]:
            yield rows
        else:
            yield from rows[: sum(pieces)].split(pieces)[:steps]
        steps -= len(pieces)


def steps_of(epochs: float, pass_steps: int) -> int:
    """Return the steps of `epochs` passes of `pass_steps`; a partial pass is rounded up to whole steps."""
    return math.ceil(epochs * pass_steps - 1e-9)
