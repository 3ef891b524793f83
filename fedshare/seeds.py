"""Named random streams: every random choice has a named purpose, and no other choice affects it.

A key is a tuple such as ``(seed, "batches", round, client)``. Equal keys give equal streams on every worker and in
every mode; different keys give different, unrelated ones. No global generator, wall clock or process id is used.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fedshare.errors import UserError

Key = int | float | str
Position = list[Tensor]  # the states of torch's own generators: the CPU's, then those of CUDA's devices in use

# Layout of a state of torch's CPU generator, an mt19937: the seed, and the 624 words, each in 8 bytes.
_WORDS = 624
_SEED, _STATE = slice(0, 8), slice(24, 24 + 8 * _WORDS)
_earlier: ContextVar[bool] = ContextVar("earlier", default=False)


def number(*key: Key) -> int:
    """Return a 63-bit number derived from `key`."""
    return _number(_text(key))


def generator(*key: Key) -> torch.Generator:
    """Return the torch generator named `key`, on the CPU."""
    return _named(torch.Generator(), key)


def numpy_generator(*key: Key) -> np.random.Generator:
    """Return the numpy generator named `key`, for what torch cannot draw (Dirichlet, choices with weights)."""
    return np.random.Generator(np.random.PCG64(number(*key)))


@contextmanager
def scope(*key: Key) -> Iterator[None]:
    """Set torch's own generator to the stream named `key` inside this context, and restore it afterwards.

    For code that takes no generator: a module's initialisation, dropout.
    """
    with kept():
        begin(*key)
        yield


def kept() -> AbstractContextManager[None]:
    """Return a context after which torch's own generator is where it was."""
    return torch.random.fork_rng(devices=range(len(_cuda())))


def begin(*key: Key) -> None:
    """Set torch's own generator, on each device, to the stream named `key`, and leave it there."""
    _named(torch.default_generator, key)
    for stream in _cuda():
        stream.manual_seed(number(*key))  # CUDA's uses all bits


def position() -> Position:
    """Return where torch's own generator is, on each device."""
    return [stream.get_state() for stream in (torch.default_generator, *_cuda())]


def go_to(position: Position) -> None:
    """Put torch's own generator where `position` says."""
    for stream, state in zip((torch.default_generator, *_cuda()), position, strict=False):
        stream.set_state(state)


def _cuda() -> Sequence[torch.Generator]:
    return torch.cuda.default_generators if torch.cuda.is_initialized() else ()


@contextmanager
def earlier() -> Iterator[None]:
    """Use the torch streams of fedshare 0.1 inside this context, to read the folders of its runs.

    They used 32 bits of `number`, so different keys could have the same stream.
    """
    token = _earlier.set(True)
    try:
        yield
    finally:
        _earlier.reset(token)


def _named(stream: torch.Generator, key: tuple[Key, ...]) -> torch.Generator:
    """Set `stream` to that of `key`: torch uses 32 bits of a seed, so the key is hashed into the whole state."""
    if _earlier.get():
        return stream.manual_seed(number(*key))
    text = _text(key)
    words = hashlib.shake_256(text).digest(4 * _WORDS)
    state, tensor = _buffers.own()
    state[_SEED].view(np.uint64)[0] = _number(text)  # the seed that the generator reports
    state[_STATE].view(np.uint64)[:] = np.frombuffer(words, "<u4")
    stream.set_state(tensor)  # copies it
    return stream


def _number(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _text(key: tuple[Key, ...]) -> bytes:
    for part in key:
        # A numpy integer prints differently from Python's, so it would silently name another stream.
        if type(part) not in (int, float, str):
            raise TypeError(f"a key is made of int, float and str, not {type(part).__name__}: {key!r}")
    return repr(key).encode()


class _Buffers(threading.local):
    """Each thread's memory for a state, as an array and as the tensor on it: a stream is begun for each client."""

    _made_of: np.ndarray | None = None

    def own(self) -> tuple[np.ndarray, Tensor]:
        if self._made_of is not (blank := _blank()):
            self._made_of, self._state = blank, blank.copy()
            self._tensor = torch.from_numpy(self._state)
        return self._state, self._tensor


_buffers = _Buffers()


@cache
def _blank() -> np.ndarray:
    """Return the initial state of a CPU generator. Raises UserError if this torch has another layout.

    Checked here: a generator with some words must draw what numpy's mt19937 draws with them.
    """
    there, numpys = torch.Generator().manual_seed(0), np.random.MT19937(1)
    blank: np.ndarray = there.get_state().numpy()
    with suppress(RuntimeError, ValueError):  # a state that is shorter, or that torch rejects
        words = numpys.state["state"]["key"]
        blank[_STATE].view(np.uint64)[:] = words
        there.set_state(torch.from_numpy(blank))
        drawn = torch.empty(2 * _WORDS, dtype=torch.int32).random_(generator=there)  # 31 bits of each
        numpys.state = numpys.state | {"state": {"key": words, "pos": _WORDS}}
        if (numpys.random_raw(2 * _WORDS) & np.uint64(2**31 - 1) == drawn.numpy()).all():
            return blank
    known = "that of torch 2.6 to 2.13: install one of those"
    raise UserError(f"torch {torch.__version__}: its CPU generator is not {known}")
