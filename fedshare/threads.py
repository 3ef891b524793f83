"""One thread, where bits matter: several threads group a sum otherwise, and round its tail otherwise.

It is also the faster for small tensors: on a busy machine, threads that wait for each other cost a thousandfold.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
