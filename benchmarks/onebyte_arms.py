"""One-byte arms compared with first-order SGD: accuracy and bytes, mean and spread over seeds, as a table for the docs.

    python benchmarks/onebyte_arms.py --seeds 0,1,2

Runs go one after another into folders below --into; existing ones are reused.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from arms import rows

# SGD gets as many batches as the others, 500 of 32, and sends a model after every five of them.
SGD = ["strategy=fedavg", "~strategy.lr", "~strategy.horizon", "rounds=100", "client.epochs=1"]
ARMS = {
    "byte": [],
    "stochastic": ["strategy.rounding=stochastic"],
    "sign": ["strategy.coding=sign"],
    "float": ["strategy.coding=float"],
    "root": ["strategy.scaling=root", "strategy.lr=0.018"],
    "mean": ["strategy.scaling=mean", "strategy.lr=0.16"],
    "pool": ["strategy.pool=512"],
    "gaussian": ["strategy.directions=gaussian"],
    "sgd": [*SGD, "client.optimizer.lr=0.3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the preset, for every run: data=mnist")
    parser.add_argument("--arms", default=",".join(ARMS), help="which of them")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--into", default="runs/onebyte", help="the folder of all runs")
    options = parser.parse_args()
    print("| arm | accuracy | loss | kB up a client | rounds |\n|---|---|---|---|---|")
    for arm in options.arms.split(","):
        last = [
            _last(Path(options.into) / f"{arm}-{seed}", [*ARMS[arm], f"seed={seed}", *options.overrides])
            for seed in options.seeds.split(",")
        ]
        accuracy = [100 * row["accuracy"] for row in last]
        spread = f" ± {statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
        loss, sent = (statistics.fmean(row[key] for row in last) for key in ("loss", "sent"))
        print(
            f"| {arm} | {statistics.fmean(accuracy):.1f}{spread} | {loss:.3f} | {sent / 1e3:,.1f} | "
            f"{last[0]['round']:,} |",
            flush=True,
        )


def _last(path: Path, wanted: list[str]) -> dict[str, Any]:
    """Return the last row of a run, and the total bytes that each client sent."""
    found = rows(path, "onebyte", wanted)
    return found[-1] | {"sent": sum(row["bytes_up"] / len(row["clients"]) for row in found)}


if __name__ == "__main__":
    main()
