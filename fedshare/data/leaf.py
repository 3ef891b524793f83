"""LEAF's json files (Caldas et al. 2018, arXiv 1812.01097): ``train/*.json`` and ``test/*.json``, by user."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedshare.data.dataset import Dataset, Examples, as_input, as_tensor
from fedshare.errors import UserError


def leaf(
    path: str,
    *,
    shape: Sequence[int],
    classes: int | None = None,
    alphabet: str | None = None,
    name: str | None = None,
) -> Dataset:
    """Return every user's examples, owned by the user: ``partition=natural`` gives each client one user.

    Inputs are lists of numbers, reshaped to `shape`; or texts, as in Shakespeare, whose characters become their
    positions in the `alphabet`, counted from 1, and 0 if not in it. Users without training examples are left out.
    """
    folder = Path(path).expanduser()
    parts = {part: _users(folder / part) for part in ("train", "test")}
    users = sorted(parts["train"])
    x, y, owner = list[Any](), list[Any](), list[int]()
    for part in ("train", "test"):
        for number, user in enumerate(users):
            own = parts[part].get(user, ([], []))
            x += own[0]
            y += own[1]
            owner += [number] * len(own[1])
    train = sum(len(targets) for _, targets in parts["train"].values())
    inputs, targets = (np.asarray([_numbers(value, alphabet) for value in values]) for values in (x, y))
    size = math.prod(shape)
    if inputs.dtype == object or inputs[:1].size != size:
        raise UserError(f"{folder}: an input has {np.size(x[0])} numbers; data.shape={list(shape)} has {size}")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if classes is None:
        classes = int(targets.max()) + 1 if targets.dtype.kind == "i" else 1
    pool = Examples(as_input(inputs.reshape(len(x), *shape)), as_tensor(targets))
    return Dataset(name or folder.name, pool, train, classes, np.array(owner))


def _users(folder: Path) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return each user's inputs and targets."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise UserError(f"{folder}: holds no .json of LEAF")
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    for file in files:
        try:
            data = json.loads(file.read_bytes())["user_data"]
            for user, examples in data.items():
                inputs, targets = examples["x"], examples["y"]
                if len(inputs) != len(targets):
                    raise ValueError(f"user {user} has {len(inputs)} inputs and {len(targets)} targets")
                before = found.setdefault(user, ([], []))
                before[0].extend(inputs)
                before[1].extend(targets)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: is no file of LEAF: {error}") from error
    return {user: data for user, data in found.items() if data[1]}


def _numbers(value: Any, alphabet: str | None) -> Any:
    if not isinstance(value, str):
        return value
    if alphabet is None:
        raise UserError("data.load.alphabet: is required where inputs are texts: the characters that are known")
    return [alphabet.find(character) + 1 for character in value]
