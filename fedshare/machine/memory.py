"""Memory that processes of this machine share: a file without a name, which is gone when the last of them has ended."""

import ctypes
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

LEAST = 1 << 20  # bytes, of which only those in use take memory


class Region:
    """Bytes that this process and those it spawns with it as an argument see alike. It grows, and never shrinks."""

    def __init__(self) -> None:
        self._map(_unnamed())

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._file.fileno())

    def __setstate__(self, file: Any) -> None:
        self._map(file.detach())

    def _map(self, file: int) -> None:
        self._file = os.fdopen(file, "r+b", buffering=0)
        self._size = self._address = 0
        self._mapped: ctypes.c_char | None = None

    def address(self, size: int) -> int:
        """Return the address of the first of at least `size` bytes, valid until this is called with a larger size."""
        if size > self._size:
            file = self._file.fileno()
            length = os.fstat(file).st_size
            if size > length:
                length = max(size, 2 * length, LEAST)
                os.ftruncate(file, length)
            self._mapped = ctypes.c_char.from_buffer(mmap.mmap(file, length))
            self._size, self._address = length, ctypes.addressof(self._mapped)
        return self._address

    def close(self) -> None:
        """Free the memory, unless another process still has it."""
        self._mapped, self._size = None, 0
        self._file.close()


def _unnamed() -> int:
    """Return the descriptor of an empty file that no folder lists."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedshare")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
