"""The sums of several tests from one pass over all their examples."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedshare.tasks.task import Task
from fedshare.tensors import Tensors


def separable(task: Task) -> bool:
    """Return whether the sums of a test are those of its examples: a user's own loss may be a mean over a batch."""
    return not task.metrics and isinstance(task.loss, str)


def sums(task: Task, tests: int, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> list[Tensors]:
    """Return `Task.sums` of each of `tests`, from batches of outputs, targets and the test that each example is of.

    The sums of losses may differ from `Task.sums` in their last bits.
    """
    total = {name: torch.zeros(tests, dtype=zero.dtype) for name, zero in task.zeros().items()}
    for outputs, targets, owners in batches:
        outputs = outputs if outputs.is_floating_point() else outputs.float()
        rows, places = task.rows(outputs.detach(), targets), owners.cpu()
        for name, column in total.items():
            column.index_add_(0, places, rows[name].to("cpu", column.dtype))
    columns = [column.unbind() for column in total.values()]
    return [dict(zip(total, mine, strict=True)) for mine in zip(*columns, strict=True)]
