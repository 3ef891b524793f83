"""One thread, where bits matter: several threads group a sum otherwise, and round its tail otherwise.

It is also the faster for small tensors: on a busy machine, threads that wait for each other cost a thousandfold.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


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
