"""Clients that have data of their own: here, loaded when first asked for; or elsewhere, and only their counts known."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from fedshare.data.dataset import Dataset, Examples
from fedshare.errors import UserError
from fedshare.files import write_atomically, writing
from fedshare.simulation.population import Sized, held_out, validating


@dataclass(frozen=True)
class Mine:
    """One client's data set."""

    client: int
    dataset: Dataset
    seed: int
    held: float  # the share of its training part that validates

    @property
    def size(self) -> int:
        return self.dataset.train_size - held_out(self.dataset.train_size, self.held)

    @property
    def tests(self) -> int:
        return len(self.dataset.pool) - self.dataset.train_size

    @property
    def train(self) -> Examples:
        return self.dataset.pool.subset(self._rows[0])

    @property
    def validation(self) -> Examples | None:
        return self.dataset.pool.subset(self._rows[1]) if self.held else None

    @property
    def test(self) -> Examples:
        return self.dataset.pool.subset(np.arange(self.dataset.train_size, len(self.dataset.pool)))

    @property
    def _rows(self) -> tuple[np.ndarray, np.ndarray]:
        return validating(np.arange(self.dataset.train_size), self.held, self.client, self.seed)


class Owned(Sequence[Mine]):
    """The clients whose data can be loaded here. `load` gives a client's data set, or raises UserError."""

    def __init__(self, clients: int, load: Callable[[int], Dataset], seed: int, validation: float) -> None:
        self._clients, self._load, self._seed, self._validation = clients, load, seed, validation
        self._known: dict[int, Mine] = {}

    def __len__(self) -> int:
        return self._clients

    def __getitem__(self, client: int) -> Mine:  # type: ignore[override]  # a slice of clients is not needed
        if not 0 <= client < len(self):
            raise IndexError(client)
        if client not in self._known:
            self._known[client] = Mine(client, self._load(client), self._seed, self._validation)
        return self._known[client]


@dataclass(frozen=True)
class Elsewhere:
    """What is known of a client whose data are elsewhere."""

    size: int
    tests: int = 0

    def _gone(self) -> NoReturn:
        raise UserError("the examples of this client are on its own host")

    @property
    def train(self) -> Examples:
        self._gone()

    @property
    def test(self) -> Examples:
        self._gone()

    @property
    def validation(self) -> Examples | None:
        self._gone()


class Declared(Sequence[Sized]):
    """How many examples to train on each client has said that it has, once for the run."""

    def __init__(self, clients: int, most: int) -> None:
        self.sizes: dict[int, int] = {}  # by client; who has not joined yet is not in it
        self._clients, self._most = clients, most
        self._file: Path | None = None

    def declare(self, client: int, examples: int) -> None:
        """Raises ValueError where that cannot be, or is not what the client has said before."""
        if not 1 <= examples <= self._most:
            raise ValueError(f"it has {examples} training examples; allowed are 1 to {self._most}")
        before = self.sizes.get(client, examples)
        if before != examples:
            raise ValueError(f"it joined this run with {before} training examples, and has {examples} now")
        if client not in self.sizes:
            self.sizes[client] = examples
            self._write()

    def keep(self, file: Path) -> None:
        """Write down in `file` what has been said, and what will be."""
        self._file = file
        self._write()

    def recall(self, file: Path) -> None:
        """What an earlier process of the run has kept in `file`. Raises UserError."""
        try:
            self.sizes = {int(client): int(examples) for client, examples in json.loads(file.read_text()).items()}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{file} is damaged: {error}") from error

    def _write(self) -> None:
        if self._file is not None:
            with writing(self._file.parent):
                self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(self.sizes, sort_keys=True) + "\n")

    def __len__(self) -> int:
        return self._clients

    def __getitem__(self, client: int) -> Elsewhere:  # type: ignore[override]  # a slice is not needed
        if not 0 <= client < len(self):
            raise IndexError(client)
        return Elsewhere(self.sizes.get(client, 0))
