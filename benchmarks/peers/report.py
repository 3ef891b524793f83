"""What every peer's script has in common: its arguments, and the line of JSON that it prints for `run.py`."""

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median

from arrays import WORKLOADS


def arguments() -> argparse.Namespace:
    """Parse `folder` (of the arrays), `workload` and `repeat` (rounds to time after one that warms up)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--repeat", type=int, default=5)
    return parser.parse_args()


def report(way: str, workload: str, seconds: list[float], packages: list[str]) -> None:
    """Print the samples per second of a round; the first of `seconds` is left out, as it warms up."""
    rates = [WORKLOADS[workload].samples / taken for taken in seconds[1:]]
    versions = {package: version(package) for package in packages} | {"python": platform.python_version()}
    print(json.dumps({"way": way, "workload": workload, "rate": median(rates), "rates": rates, "versions": versions}))
