"""What it costs that clients leave and come back: accuracy with and without churn, and the bytes of catching up.

    python benchmarks/churn.py [OVERRIDE ...] [--arms ring,onebyte] [--share 0.3] [--seeds 0,1,2]

A share of the clients leaves once, drawn by the seed: in the first half of the rounds, for 5 to 40 % of all rounds, and
every second one by a crash. All are back at the end, so that accuracies are over the same clients. Prints a table.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from fedshare import seeds
from fedshare.experiments.config import build, compose
from fedshare.experiments.running.adversaries import played
from fedshare.simulation import Simulation

CONFIG = [
    *("data=digits", "model=logistic", "partition.clients=16", "partition.alpha=0.3", "clients_per_round=null"),
    *("client.epochs=1", "rounds=40", "evaluate_every=1000", "workers=0"),
]
ARMS = {
    "ring": ["strategy=gossip", "peers=ring"],
    "full": ["strategy=gossip", "peers=full"],
    "fedavg": ["strategy=fedavg"],
    "onebyte": ["strategy=onebyte", "strategy.lr=0.002"],
    "flood": ["strategy=onebyte", "strategy.lr=0.002", "peers=ring"],
}


@dataclass(frozen=True)
class Outcome:
    accuracy: float  # after the last round, over all test examples
    down: int  # bytes that all clients received
    caught_up: int  # of these, for clients that had missed rounds of a ledger
    how: tuple[int, int]  # how often by commits, and by a snapshot


def churned(clients: int, rounds: int, share: float, seed: int) -> str:
    """Return a file of events in which a share of the clients leaves once and comes back."""
    draw = seeds.generator("benchmark", "churn", seed)
    events = []
    for number, client in enumerate(torch.randperm(clients, generator=draw)[: round(share * clients)].tolist()):
        first = int(torch.randint(2, rounds // 2 + 1, (), generator=draw))
        last = first + int(torch.randint(rounds // 20, rounds * 2 // 5 + 1, (), generator=draw))
        what = "crash" if number % 2 else "leave"
        events += [{"round": first, "client": client, "event": what}]
        events += [{"round": last, "client": client, "event": "rejoin"}]
    return "".join(json.dumps(event) + "\n" for event in events)


def outcome(overrides: list[str], share: float, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events.jsonl")
        config = compose.resolved([*CONFIG, *overrides, f"seed={seed}", "links=file", f"links.path={path}"])
        path.write_text(churned(config.partition.clients, config.rounds, share, seed))
        population = build.simulated(config)
        state = population.strategy.init(population.scratch.initial, population.clients)
        with Simulation(lambda: population, population=population) as network:
            rows = [done.row for done in played(config, network, population, state)]
    how = [what for row in rows for what in row.get("caught_up", {}).values()]
    return Outcome(
        accuracy=rows[-1]["accuracy"],
        down=sum(row["bytes_down"] for row in rows),
        caught_up=sum(row.get("bytes_caught_up", 0) for row in rows),
        how=(len(how) - how.count("snapshot"), how.count("snapshot")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of all runs: data=mnist model=mlp")
    parser.add_argument("--arms", default=",".join(ARMS), help="which of them")
    parser.add_argument("--share", type=float, default=0.3, help="of the clients that leave and come back")
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| | accuracy, all always there | accuracy with churn | kB down without, with | kB of catching up |")
    print("|---|---|---|---|---|")
    for name in options.arms.split(","):
        overrides = [*ARMS[name], *options.overrides]
        still, moving = (
            [outcome(overrides, share, int(seed)) for seed in options.seeds.split(",")] for share in (0, options.share)
        )
        accuracies = " | ".join(_spread([one.accuracy for one in some]) for some in (still, moving))
        down = ", ".join(f"{statistics.mean(one.down for one in some) / 1000:,.1f}" for some in (still, moving))
        by = [sum(one.how[place] for one in moving) for place in (0, 1)]
        caught = f"{statistics.mean(one.caught_up for one in moving) / 1000:,.2f}"
        more = f" ({by[0]} times commits, {by[1]} times a snapshot)" if any(by) else ""
        print(f"| {name} | {accuracies} | {down} | {caught}{more} |", flush=True)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
