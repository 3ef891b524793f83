"""One thread, where bits matter: several threads group a sum otherwise, and round its tail otherwise.

It is also the faster for small tensors: on a busy machine, threads that wait for each other cost a thousandfold.
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
    """What `work` makes of each item, an item on one thread: the same bits, however many threads there are.

    They are `count`, or one a core. Numpy and torch let other threads run while they compute, so that this is for items
    of a millisecond or so.
    """
    if count == 1:
        with one_thread():
            return [work(item) for item in items]
    with one_thread(), ThreadPoolExecutor(count or cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, items))
