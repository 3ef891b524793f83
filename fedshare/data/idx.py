"""The idx format of MNIST: a header of big-endian numbers, then the bytes of an array."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from fedshare.errors import UserError

HEADER = {1: b"\0\0\x08\x01", 3: b"\0\0\x08\x03"}  # dimensions -> the first four bytes of a uint8 array's file


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the uint8 array in `path`, gzipped if its name ends in ``.gz``. Raise `UserError` if it is invalid."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from error
    start = 4 + 4 * dimensions
    if data[:4] != HEADER[dimensions] or len(data) < start:
        raise UserError(f"{path} is not an idx file of {dimensions}-dimensional bytes: it starts with {data[:4]!r}")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    size = int(np.prod(shape, dtype=object))
    if len(data) != start + size:
        raise UserError(f"{path} is damaged: {len(data)} bytes, where its header asks for {start + size}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
