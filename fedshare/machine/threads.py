"""Thread counts of torch: one thread where bits matter, because the number of threads changes how sums are rounded.

One thread is also faster for small tensors: on a busy machine, threads that wait for each other cost a thousandfold.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch

from fedshare.machine.devices import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> AbstractContextManager[None]:
    return threads(1)


def spread(work: Callable[[Item], Result], items: Iterable[Item], count: int | None = None) -> list[Result]:
    """Return `work` of each item, each computed on one thread: the bits do not depend on the number of threads.

    `count` threads, by default one per core. Numpy and torch release the interpreter lock while they compute, so this
    pays for items that take about a millisecond or more.
    """
    items = list(items)
    if count == 1 or len(items) == 1:
        with one_thread():
            return [work(item) for item in items]
    with one_thread(), ThreadPoolExecutor(count or cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))
