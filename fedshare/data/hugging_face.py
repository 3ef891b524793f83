"""A folder for Hugging Face's `datasets`, read lazily: saved by it, or files of Parquet, CSV, JSON or images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.from_torch import Joined
from fedshare.data.lazy import Item, Lazy
from fedshare.data.split import divided
from fedshare.data.tokenizer import Tokenizer
from fedshare.errors import UserError, first_line
from fedshare.machine.extras import importing


class Read:
    """Map an item, a dict of columns, to inputs and target; texts become tokens of a fixed length, padded with 0."""

    def __init__(self, inputs: Sequence[str], target: str, tokenizer: Tokenizer | None, length: int | None) -> None:
        self.inputs, self.target, self.tokenizer, self.length = list(inputs), target, tokenizer, length

    def __call__(self, item: Any) -> Item:
        values = {name: self._value(name, item[name]) for name in self.inputs}
        return (values if len(values) > 1 else values[self.inputs[0]]), item[self.target]

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            if self.tokenizer is None:
                raise UserError(f"data.load.tokenizer: is required, for the column {name} is text")
            value = self.tokenizer.encode(value)
        if isinstance(value, list) and self.length is not None:
            value = (value + [0] * self.length)[: self.length]
        return value


def hf_folder(
    path: str,
    *,
    inputs: str | Sequence[str],
    target: str,
    train: str = "train",
    test: str | None = "test",
    classes: int | None = None,
    tokenizer: Tokenizer | None = None,
    length: int | None = None,
    cache: bool = False,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    test_share: float = 0.2,
    name: str | None = None,
) -> Dataset:
    """Return the splits `train` and `test` as a data set; without a test split, a share of train is for test.

    `inputs` are the columns that are the model's inputs, passed by name if there are several. Lists, such as tokens,
    and texts encoded by a `tokenizer` are cut or padded to `length`. With `cache`, all items are read once and kept.
    """
    splits = _opened(Path(path).expanduser())
    if train not in splits:
        raise UserError(f"{path}: has no split {train}; it has {', '.join(splits)}")
    columns = [inputs] if isinstance(inputs, str) else list(inputs)
    there = splits[train].column_names
    for column in (*columns, target):
        if column not in there:
            raise UserError(f"{path}: has no column {column}; it has {', '.join(there)}")
    used = [splits[train]] + ([splits[test]] if test is not None and test in splits else [])
    used = [split.select_columns([*columns, target]) for split in used]
    labels = _labels(used, target)
    pool = Lazy(
        Joined(*used),
        np.arange(sum(map(len, used))),
        labels,
        tuple(mean),
        tuple(std),
        Read(columns, target, tokenizer, length),
    )
    size = len(used[0])
    if len(used) == 1:
        kept, held_out = divided(pool.labels, len(pool), test_share, "hf")
        pool, size = pool.subset(np.concatenate([kept, held_out])), len(kept)
    if classes is None:
        named = getattr(used[0].features[target], "num_classes", None)
        classes = named or (int(labels.max()) + 1 if labels is not None else None)
    if classes is None:
        raise UserError(f"data.classes: is required, for {target} names no classes")
    return Dataset(name or Path(path).name, pool.cached() if cache else pool, size, classes)


def _opened(folder: Path) -> dict[str, Any]:
    with importing("datasets", "data=hf"):
        import datasets
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    try:
        saved = any((folder / file).exists() for file in ("dataset_dict.json", "dataset_info.json"))
        found = datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
    except Exception as error:  # many libraries raise here
        raise UserError(f"{folder}: cannot be read: {first_line(error)}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _labels(splits: list[Any], target: str) -> np.ndarray | None:
    """Return the classes if the target is a column of integers, without reading the other columns."""
    columns = [
        np.asarray(split.select_columns([target]).with_format("numpy")[target][:]) for split in splits if len(split)
    ]
    whole = np.concatenate(columns) if columns and all(column.ndim == 1 for column in columns) else None
    return None if whole is None or whole.dtype.kind not in "iub" else whole.astype(np.int64)
