"""PFLlib's folders: ``train/0.npz`` and ``test/0.npz``, one file per client, each a dict of ``x`` and ``y``.

The dict is a pickled object in the array; the unpickler accepts only arrays and plain values.
"""

import io
import zipfile
from pathlib import Path

import numpy as np

from fedshare.data.batches import ArraysOnly
from fedshare.data.dataset import Dataset, Examples, as_input, as_tensor
from fedshare.errors import UserError


def pfllib(path: str, *, classes: int | None = None, name: str | None = None) -> Dataset:
    """Return all clients' examples, owned by their client: ``partition=natural`` gives each client its own."""
    folder = Path(path).expanduser()
    clients = sorted(int(file.stem) for file in (folder / "train").glob("*.npz") if file.stem.isdecimal())
    if not clients:
        raise UserError(f"{folder}: holds no train/0.npz of PFLlib's")
    x, y, owner, train = list[np.ndarray](), list[np.ndarray](), list[np.ndarray](), 0
    for part in ("train", "test"):
        for client in clients:
            file = folder / part / f"{client}.npz"
            if part == "test" and not file.exists():
                continue
            inputs, targets = _read(file)
            x.append(inputs)
            y.append(targets)
            owner.append(np.full(len(targets), client))
            train += len(targets) if part == "train" else 0
    if len(shapes := {inputs.shape[1:] for inputs in x if len(inputs)}) > 1:
        raise UserError(
            f"{folder}: inputs of several shapes, {' and '.join(str(list(shape)) for shape in sorted(shapes))}"
        )
    targets = np.concatenate(y)
    if classes is None:
        classes = int(targets.max()) + 1
    whole = [inputs for inputs in x if len(inputs)]
    return Dataset(
        name or folder.name,
        Examples(as_input(np.concatenate(whole)), as_tensor(targets)),
        train,
        classes,
        np.concatenate(owner),
    )


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            data = io.BytesIO(archive.read("data.npy"))
        version = np.lib.format.read_magic(data)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, kind = read_header[version](data)
        if shape != () or kind.kind != "O":
            raise ValueError(f"its data is an array of {kind}")
        content = ArraysOnly(data, encoding="latin1").load()
        content = content.item() if isinstance(content, np.ndarray) else content
        inputs, targets = np.asarray(content["x"]), np.asarray(content["y"])
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs and {len(targets)} targets")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UserError as error:
        raise UserError(f"{file} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(
            f"{file}: is none of PFLlib's: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    return inputs, targets.astype(np.int64) if targets.dtype.kind in "iu" else targets
