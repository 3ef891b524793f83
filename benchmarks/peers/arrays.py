"""The workloads of the benchmarks of rounds: their sizes, and synthetic data for every library, with numpy only.

python benchmarks/peers/arrays.py FOLDER [WORKLOAD ...]
"""

import argparse
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

LR = 0.1  # of plain SGD, for one epoch at each client
CLASSES = 10


@dataclass(frozen=True)
class Workload:
    shape: list[int]  # of one example
    clients: int  # in total
    chosen: int  # per round
    examples: int  # per client
    batch: int
    parameters: int  # of the model

    @property
    def samples(self) -> int:
        """Number of examples that a round trains on."""
        return self.chosen * self.examples


WORKLOADS = {
    "W1": Workload([3, 32, 32], 100, 10, 500, 20, 878_538),  # CNN
    "W2m": Workload([1, 28, 28], 1000, 50, 60, 10, 199_210),  # perceptron 784-200-200-10
    "W2c": Workload([1, 28, 28], 1000, 50, 60, 10, 582_026),  # CNN
    "W3": Workload([60], 10_000, 200, 10, 10, 610),  # logistic regression
    "W3b": Workload([784], 10_000, 200, 10, 10, 25_450),  # perceptron 784-32-10
}


def generate(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [clients, examples, *shape] in float32 and labels [clients, examples] in int64: always the same."""
    workload = WORKLOADS[name]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    sizes = (workload.clients, workload.examples)
    x = random.random((*sizes, prod(workload.shape)), dtype=np.float32).reshape(*sizes, *workload.shape)
    return x, random.integers(CLASSES, size=sizes)


def write(folder: Path, name: str) -> None:
    x, y = generate(name)
    np.savez(folder / f"{name}.npz", x=x, y=y)


def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / f"{name}.npz") as arrays:
        return arrays["x"], arrays["y"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("workloads", nargs="*", choices=[[], *WORKLOADS], default=[])
    options = parser.parse_args()
    for name in options.workloads or WORKLOADS:
        write(options.folder, name)


if __name__ == "__main__":
    main()
