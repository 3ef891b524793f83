"""Data sets of clients' own: `partition.sources` in a simulation, `--data` on a client's host."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fedshare.data.dataset import Dataset, Examples, Inputs
from fedshare.errors import UserError, first_line
from fedshare.experiments.config import words
from fedshare.experiments.config.instantiate import shown
from fedshare.simulation import Part
from fedshare.tasks import Task

_BLANKS = 8  # more than one, because BatchNorm needs that when a model is tried


def named(pattern: str, client: int) -> Any:
    """Return a client's `--data`, with its id in place of ``{id}``: the contents of a YAML file, or another path."""
    path = pattern.replace("{id}", str(client))
    if Path(path).suffix not in (".yaml", ".yml"):
        return path
    try:
        node = OmegaConf.create(Path(path).expanduser().read_text().replace("{id}", str(client)))
    except OSError as error:
        raise UserError(f"--data {path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # of YAML's and OmegaConf's types
        raise UserError(f"--data {path}: is no YAML: {first_line(error)}") from error
    if not isinstance(node, DictConfig) or not node:
        raise UserError(f"--data {path}: must hold arguments of data.load, or a load of its own, with a _target_")
    return node.get("load", node)


def merged(config: DictConfig, source: Any) -> DictConfig:
    """Return the config with a client's own data.load. Raises UserError."""
    load = config.data.load
    if isinstance(source, str):
        if load is None or "path" not in load:
            raise UserError(f"{source}: data.load has no path; a YAML file with a _target_ is required")
        source = {"path": source}
    elif "_target_" not in source and load is None:
        raise UserError("lacks the _target_ that loads it, for data.load is null")
    own = config.copy()
    whole = OmegaConf.create(source if "_target_" in source else OmegaConf.merge(load, source))
    own.data.load = words.numbers(OmegaConf.to_container(whole))
    return own


def blank(config: DictConfig, task: Task) -> tuple[Dataset, Part]:
    """Return the stand-in for data on other hosts: zeros of the config's shape, dtype and classes."""
    classes = config.data.get("classes")
    if type(classes) is not int or classes < 1:
        raise UserError(
            f"data.classes={shown(classes)}: how many classes, labels, or numbers a model answers with; required"
        )
    inputs = _zeros(config.data.get("shape"), config.data.get("dtype", "float32"))
    examples = Examples(inputs, task.blank(inputs, classes))
    dataset = task.fitted(Dataset("the clients' own data", examples, _BLANKS, classes))
    return dataset, Part(dataset.pool, dataset.pool)


def _zeros(shape: Any, kind: Any) -> Inputs:
    plain = OmegaConf.to_container(shape) if OmegaConf.is_config(shape) else shape
    try:
        if isinstance(plain, dict):
            return {str(name): _zero(part, _kind(kind, name)) for name, part in plain.items()}
        if plain and all(isinstance(part, list) for part in plain):
            return tuple(_zero(part, _kind(kind, place)) for place, part in enumerate(plain))
        return _zero(plain, kind)
    except (TypeError, ValueError, LookupError, RuntimeError):
        raise UserError(
            f"data.shape={shown(plain)}, data.dtype={kind}: the shape of one input, as in [30], and its type; required"
        ) from None


def _zero(shape: Any, kind: str) -> torch.Tensor:
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(kind)
    return torch.zeros([_BLANKS, *shape], dtype=dtype)


def _kind(kind: Any, part: Any) -> str:
    return kind if isinstance(kind, str) else kind[part]
