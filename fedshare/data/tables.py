"""The user's own table, CSV or Parquet: columns of numbers and words as features, one column as the target."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedshare.data.dataset import Dataset, Examples, as_input, as_tensor
from fedshare.data.split import divided
from fedshare.errors import UserError, first_line
from fedshare.machine.extras import importing

SHOWN = 5  # columns or values named in an error
MANY = 32  # with more distinct words, a column is checked for names, dates or free text


def table(
    path: str,
    *,
    target: str | Sequence[str],
    test: str | None = None,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    owner: str | None = None,
    categories: Mapping[str, Sequence[Any]] | None = None,
    separator: str = ",",
    decimal: str = ".",
    fill: float | None = None,
    standardise: bool = True,
    test_share: float = 0.2,
    classes: int | None = None,
    name: str | None = None,
) -> Dataset:
    """Return float32 features ``[n, columns]`` and the target.

    Columns of numbers and bools are features, with `standardise` minus their mean and divided by their deviation in the
    training part; columns of words are one-hot encoded. Their values, and the classes of a target of words, are the
    sorted ones that occur, or the column's `categories`, which must be the same on all hosts. `target` may name several
    columns of numbers. A missing number is an error, unless `fill` replaces it. `separator` and `decimal` are the CSV
    file's. `owner` names the column with each row's owner, for ``partition=natural``. Without a `test` file, a share of
    the rows is for test, stratified if there are classes.
    """
    files = [file for file in (path, test) if file is not None]
    frames = [_read(file, separator, decimal) for file in files]
    columns = list(frames[0].columns)
    targets = [target] if isinstance(target, str) else list(target)
    aside = [*targets, *drop, *([owner] if owner else [])]
    used = [column for column in columns if column not in aside] if features is None else list(features)
    for file, frame in zip(files, frames, strict=True):
        for column in (*aside, *used):
            if column not in frame.columns:
                raise UserError(f"{file}: has no column {column}; it has {_some(frame.columns)}")
    if not used:
        raise UserError(f"{path}: no column is left for features")
    known = {str(column): list(values) for column, values in (categories or {}).items()}

    def whole(column: str) -> np.ndarray:
        return np.concatenate([frame[column].to_numpy() for frame in frames])

    y = np.stack([_target(whole(column), f"{path}: column {column}", known.get(column)) for column in targets], axis=1)
    y = y[:, 0] if len(targets) == 1 else y
    named = [(whole(column), f"{path}: column {column}", known.get(column)) for column in used]
    for values, where, _ in named if fill is None else ():
        if missing := int(_missing(values).sum()):
            raise UserError(f"{where} lacks {missing} of {len(values)} values: fill=0 puts one there, or drop it")
    rows, train = np.arange(len(y)), len(frames[0])
    if test is None:
        kept, held_out = divided(y if y.ndim == 1 and y.dtype == np.int64 else None, len(y), test_share, "table")
        rows, train = np.concatenate([kept, held_out]), len(kept)
    features_of = [
        _feature(values[rows], where, words, fill, train if standardise else 0) for values, where, words in named
    ]
    whose = None if owner is None else np.unique(whole(owner).astype(str), return_inverse=True)[1][rows]
    if classes is None:
        numbers = y.dtype.kind == "f"
        classes = len(targets) if numbers or len(targets) > 1 else max(2, int(y.max()) + 1)
    x = np.concatenate(features_of, axis=1)
    return Dataset(name or Path(path).stem, Examples(as_input(x), as_tensor(y[rows])), train, classes, whose)


def _read(file: str, separator: str, decimal: str) -> Any:
    """Return the file as a pandas DataFrame. Raises UserError if it cannot be read, or is empty."""
    with importing("pandas", "data=table"):
        import pandas
    path = Path(file).expanduser()
    read_csv = partial(pandas.read_csv, sep=separator, decimal=decimal)
    readers = {".csv": read_csv, ".parquet": pandas.read_parquet, ".pq": pandas.read_parquet}
    if path.suffix not in readers:
        raise UserError(f"{file}: must end in {', '.join(readers)}")
    try:
        frame = readers[path.suffix](path)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except Exception as error:  # many libraries raise here
        raise UserError(f"{file}: cannot be read: {first_line(error)}") from error
    if not len(frame):
        raise UserError(f"{file}: has no row")
    frame.columns = [str(column) for column in frame.columns]
    if len(frame.columns) == 1 and (found := [mark for mark in ";\t|" if mark in frame.columns[0]]):
        raise UserError(
            f"{file}: has one column, {frame.columns[0]!r}: data.load.separator={found[0]!r} reads it as several"
        )
    return frame


def _target(values: np.ndarray, where: str, known: list[Any] | None) -> np.ndarray:
    """Return classes as int64, from words or if categories are given; otherwise the numbers unchanged."""
    if (missing := int(_missing(values).sum())) > 0:
        raise UserError(f"{where}, a target, lacks {missing} of {len(values)} values")
    if known is None and values.dtype.kind in "iufb":
        return values.astype(np.int64 if values.dtype.kind == "b" else values.dtype)
    return _numbered(values, where, known)


def _feature(values: np.ndarray, where: str, known: list[Any] | None, fill: float | None, train: int) -> np.ndarray:
    """Return float32 ``[n, columns]``: a column of numbers standardised by its first `train` rows, or one per word."""
    if known is not None or values.dtype.kind not in "iufb":
        if known is None and (words := len(_words(values))) > max(MANY, len(values) / 2):
            raise UserError(
                f"{where} has {words} different words in {len(values)} rows, and each would be a feature: "
                "leave it out with drop, or list its categories"
            )
        return np.eye(len(known or _words(values)), dtype=np.float32)[_numbered(values, where, known)]
    column = values.astype(np.float64)
    column[~np.isfinite(column)] = fill
    if train:
        deviation = column[:train].std()
        column = (column - column[:train].mean()) / (deviation if deviation > 0 else 1)
    return column[:, None].astype(np.float32)


def _numbered(values: np.ndarray, where: str, known: list[Any] | None) -> np.ndarray:
    """Return each value's index in the categories."""
    words = [str(word) for word in known] if known is not None else _words(values)
    place = {word: number for number, word in enumerate(words)}
    if unknown := sorted({str(value) for value in values} - place.keys()):
        raise UserError(f"{where} has {unknown[0]!r}, which is none of its categories: {_some(words)}")
    return np.array([place[str(value)] for value in values], dtype=np.int64)


def _words(values: np.ndarray) -> list[str]:
    return sorted({str(value) for value in values})


def _missing(values: np.ndarray) -> np.ndarray:
    return np.array([value is None or value != value for value in values], dtype=bool)  # NaN is not itself


def _some(names: Any) -> str:
    known = [str(name) for name in names]
    return ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
