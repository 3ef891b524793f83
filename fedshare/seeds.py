"""Named random streams: every random choice says what it is for, and nothing else can move it.

A key is a tuple such as ``(seed, "batches", round, client)``. Equal keys give equal streams on every worker and in
every mode; different keys give unrelated ones. No global generator, wall clock or process id takes part.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Key = int | float | str


def number(*key: Key) -> int:
    """A 63-bit number that stands for `key`."""
    for part in key:
        # A numpy integer prints differently from Python's, so it would silently name another stream.
        if type(part) not in (int, float, str):
            raise TypeError(f"a key is made of int, float and str, not {type(part).__name__}: {key!r}")
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little") >> 1


def generator(*key: Key) -> torch.Generator:
    """The torch generator named `key`, on the CPU."""
    return torch.Generator().manual_seed(number(*key))


def numpy_generator(*key: Key) -> np.random.Generator:
    """The numpy generator named `key`, for what torch cannot draw (Dirichlet, choices with weights)."""
    return np.random.Generator(np.random.PCG64(number(*key)))


@contextmanager
def scope(*key: Key) -> Iterator[None]:
    """Inside, torch's own generator is the stream named `key`; outside, it is as if nothing had happened.

    For code that takes no generator: a module's initialisation, dropout.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(number(*key))
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(number(*key))
        yield
