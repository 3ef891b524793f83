"""Which examples make which step: passes over a client's examples in batches."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

LastBatch = Literal["join", "drop", "keep"]


def sizes(count: int, batch_size: int | None, last: LastBatch) -> list[int]:
    """The sizes of the batches of one pass over `count` examples; `batch_size` None is one batch.

    What becomes of a short last batch: ``join`` adds a single example to the batch before it, ``drop`` leaves any short
    batch out, ``keep`` keeps it. A batch that is the only one stays.
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
    """The rows of `steps` batches of the sizes `pieces`, a pass after the other, each in an order of its own."""
    while steps > 0 and pieces:
        rows = torch.randperm(count, generator=generator)
        yield from rows[: sum(pieces)].split(pieces)[:steps]
        steps -= len(pieces)


def steps_of(epochs: float, pass_steps: int) -> int:
    """The steps of so many passes of `pass_steps`; a part of a pass is rounded up to whole steps."""
    return math.ceil(epochs * pass_steps - 1e-9)
