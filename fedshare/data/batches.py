"""CIFAR's python batches: the only module that reads a pickle, and it allows only numpy arrays and plain values."""

import pickle  # the published files are pickles; ArraysOnly lets nothing in them run
from pathlib import Path
from typing import Any

import numpy as np

from fedshare.errors import UserError

# A pickle names the callables it needs. Arrays written by Python 2 or by any numpy version need only these.
RECONSTRUCT = np.empty(0).__reduce__()[0]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"it asks for {module}.{name}, where a batch has numpy arrays alone")
        return ALLOWED[module, name]


def read_batch(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 ``[n, 3, 32, 32]``, and the labels stored under the key `label`, int64 ``[n]``.

    Raise `UserError` if the file is damaged or needs anything but arrays.
    """
    with path.open("rb") as file:
        try:
            batch = ArraysOnly(file, encoding="bytes").load()
        except UserError as error:
            raise UserError(f"{path} is refused: {error}") from None
        except Exception as error:  # a damaged pickle can raise almost anything
            raise UserError(f"{path} is damaged: {' '.join(str(error).split()) or type(error).__name__}") from error
    images, labels = (batch.get(b"data"), batch.get(label.encode())) if isinstance(batch, dict) else (None, None)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        raise UserError(f"{path} is not a CIFAR batch: data must be uint8 of shape [n, 3072]")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(number) is int for number in labels):
        raise UserError(f"{path} is not a CIFAR batch: {label} must be {len(images)} integers")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.int64)
