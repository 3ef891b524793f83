"""Clients with data of their own: loaded here on first use, or elsewhere, with only their counts known."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from fedshare.data.dataset import Dataset, Examples
from fedshare.errors import UserError
from fedshare.machine.files import write_atomically, writing
from fedshare.population.shares import Sized, held_out, validating


@dataclass(frozen=True)
class Mine:
    """One client's data set."""

    client: int
    dataset: Dataset
    seed: int
    held: float  # the share of its training part held out for validation

    @property
    def size(self) -> int:
        return self.dataset.train_size - held_out(self.dataset.train_size, self.held)

    @property
    def tests(self) -> int:
        return len(self.dataset.pool) - self.dataset.train_size

    @property
    def validations(self) -> int:
        return held_out(self.dataset.train_size, self.held)

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
    """Clients whose data can be loaded here. `load` returns a client's data set, or raises UserError."""

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
    """The counts of a client whose data are elsewhere."""

    size: int
    tests: int = 0
    validations: int = 0

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
    """The number of training, test and validation examples that each client has declared, once per run.

    A client that joined under an older version declared only the first, and declares the others when it rejoins.
    """

    def __init__(self, clients: int, most: int) -> None:
        self.sizes: dict[int, int] = {}  # by client; those not yet joined are missing
        self.tests: dict[int, int] = {}
        self.validations: dict[int, int] = {}
        self._clients, self._most = clients, most
        self._file: Path | None = None

    def declare(self, client: int, examples: int, tests: int = 0, validations: int = 0) -> None:
        """Raise ValueError if the counts are invalid, or differ from what the client declared before."""
        said = (
            ("training", 1, examples, self.sizes),
            ("test", 0, tests, self.tests),
            ("validation", 0, validations, self.validations),
        )
        for kind, least, count, known in said:
            if not least <= count <= self._most:
                raise ValueError(f"it has {count} {kind} examples; allowed are {least} to {self._most}")
            if (before := known.get(client, count)) != count:
                raise ValueError(f"it joined this run with {before} {kind} examples, and has {count} now")
        if any(client not in known for *_, known in said):
            for *_, count, known in said:
                known[client] = count
            self._write()

    def keep(self, file: Path) -> None:
        """Write the declarations to `file`, now and after each change."""
        self._file = file
        self._write()

    def recall(self, file: Path) -> None:
        """Restore the declarations that an earlier process of the run wrote to `file`. Raises UserError."""
        try:
            for client, counts in json.loads(file.read_text()).items():
                if not isinstance(counts, dict):  # format of older versions
                    self.sizes[int(client)] = int(counts)
                    continue
                for name, known in self._named.items():
                    known[int(client)] = int(counts[name])
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{file} is damaged: {error}") from error

    def _write(self) -> None:
        if self._file is not None:
            with writing(self._file.parent):
                self._file.parent.mkdir(parents=True, exist_ok=True)
            said = {
                client: {name: known[client] for name, known in self._named.items()}
                if client in self.tests
                else self.sizes[client]
                for client in self.sizes
            }
            write_atomically(self._file, json.dumps(said, sort_keys=True) + "\n")

    @property
    def _named(self) -> dict[str, dict[int, int]]:
        return {"train": self.sizes, "test": self.tests, "validation": self.validations}

    def __len__(self) -> int:
        return self._clients

    def __getitem__(self, client: int) -> Elsewhere:  # type: ignore[override]  # a slice is not needed
        if not 0 <= client < len(self):
            raise IndexError(client)
        return Elsewhere(*(known.get(client, 0) for known in self._named.values()))
