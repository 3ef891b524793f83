"""FedPEFT's methods compared with full fine-tuning: accuracy and bytes, mean and spread over seeds, for the docs.

    fedshare pretrain -cn pretrain_cifar100 folder=backbones/vit-cifar100-0
    python benchmarks/transfer.py backbones/vit-cifar100-0 --seeds 0,1,2

Runs go one after another into folders below --into; existing ones are reused.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from arms import rows

METHODS = ("full", "head", "bias", "prompt", "adapter", "compacter", "shards", "lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="the backbone's folder")
    parser.add_argument("overrides", nargs="*", help="of the preset, for every run: rounds=10")
    parser.add_argument("--methods", default=",".join(METHODS), help="the first is what the others are held against")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--into", default="runs/transfer", help="the folder of all runs")
    options = parser.parse_args()
    methods, seeds = options.methods.split(","), options.seeds.split(",")
    arms = {
        method: [_last(Path(options.into), method, seed, options.weights, options.overrides) for seed in seeds]
        for method in methods
    }
    print(
        f"| `peft=` | accuracy | of {methods[0]} | mean of clients | MB | of full sharing |\n|---|---|---|---|---|---|"
    )
    whole = _mean(arms[methods[0]], "accuracy")
    for method, last in arms.items():
        accuracy = _mean(last, "accuracy")
        spread = statistics.stdev(row["accuracy"] for row in last) if len(last) > 1 else 0.0
        sent, full = (statistics.fmean(row[key] for row in last) for key in ("sent", "full"))
        print(
            f"| `{method}` | {100 * accuracy:.1f} ± {100 * spread:.1f} | {100 * accuracy / whole:.1f} % | "
            f"{100 * _mean(last, 'accuracy_mean'):.1f} | {sent / 1e6:.1f} | {100 * sent / full:.2f} % |"
        )


def _last(into: Path, method: str, seed: str, weights: str, overrides: list[str]) -> dict[str, Any]:
    """Return the last row of a run, and what the whole run sent, and would have sent without PEFT."""
    wanted = [f"weights={weights}", f"peft={method}", f"seed={seed}", *overrides]
    found = rows(into / f"{method}-{seed}", "transfer", wanted)
    sent, full = (sum(row[f"bytes_up{kind}"] + row[f"bytes_down{kind}"] for row in found) for kind in ("", "_full"))
    return found[-1] | {"sent": sent, "full": full}


def _mean(last: list[dict[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in last)


if __name__ == "__main__":
    main()
