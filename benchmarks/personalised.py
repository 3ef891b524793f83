"""Personalised methods side by side, each client tested on its own data: a table for the docs, over seeds.

    python benchmarks/personalised.py
    python benchmarks/personalised.py --arms "local fedavg fedcac" --seeds 0 rounds=10

An arm is a strategy, optionally with overrides: ``fedcac,strategy.beta=10``; arms are separated by spaces. Runs go one
after another into folders below --into; existing ones are reused.
"""

import argparse
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arms import rows

ARMS = "local fedavg finetune fedper fedrep ditto cfl fedcac,strategy.beta=10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the preset, for every run: rounds=10")
    parser.add_argument("--preset", default="personalised")
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--into", default="runs/personalised", help="the folder of all runs")
    options = parser.parse_args()
    seeds = options.seeds.split(",")
    print("| | mean of clients | by seed | spread among clients | worst 10 % | MB | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for arm in options.arms.split():
        strategy, *more = arm.split(",")
        wanted = [f"strategy={strategy}", *more, *options.overrides]
        name = re.sub(r"[^\w.]+", "-", arm)
        folders = [Path(options.into) / f"{name}-{seed}" for seed in seeds]
        runs = [rows(path, options.preset, [*wanted, f"seed={s}"]) for path, s in zip(folders, seeds, strict=True)]
        last = [run[-1] for run in runs]
        means = [100 * row["accuracy_mean"] for row in last]
        among = [100 * statistics.pstdev(row["per_client"]["accuracy"].values()) for row in last]
        sent = [sum(row["bytes_up"] + row["bytes_down"] for row in run) / 1e6 for run in runs]
        seconds = [sum(sum(row["seconds"].values()) for row in run) for run in runs]
        cells = [f"`{' '.join([strategy, *more])}`", _spread(means), ", ".join(f"{mean:.1f}" for mean in means)]
        cells += [f"{statistics.fmean(among):.1f}", _spread([100 * row["accuracy_worst10"] for row in last])]
        cells += [f"{statistics.fmean(sent):.0f}", f"{statistics.fmean(seconds):.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def _spread(values: Iterable[Any]) -> str:
    found = list(values)
    return f"{statistics.fmean(found):.1f} ± {statistics.stdev(found) if len(found) > 1 else 0:.1f}"


if __name__ == "__main__":
    main()
