"""Learning without a server, by graph: accuracy, consensus and bytes a peer, over seeds.

    FEDSHARE_DATA=DIR python benchmarks/decentralised.py graphs|attacks [--rounds N] [--seeds N] [KEY=VALUE ...]

16 peers share MNIST by Dirichlet 0.3; each model is tested on everyone's test examples, and on its peer's own.
``graphs``: D-PSGD and DiLoCo on four graphs, beside FedAvg with a server.
``attacks``: two of the peers send the opposite of their updates (sign flip); accuracies are those of the honest ones.
"""

import argparse
import os
from statistics import fmean, pstdev
from typing import Any

import torch

from fedshare.engine.batched import Batched
from fedshare.experiments.config import build, compose
from fedshare.experiments.config.application import hydra
from fedshare.network import Purpose, answer
from fedshare.population import Population
from fedshare.rounds import run_server
from fedshare.simulation import Simulation
from fedshare.state import State

PEERS = 16
DATA = ["data=mnist", "model=mlp", "partition=dirichlet", "partition.alpha=0.3", f"partition.clients={PEERS}"]
COMMON = [*DATA, "train_examples=8000", "clients_per_round=null", "tracking=none"]
EPOCH = ["client.epochs=1"]
GOSSIP = ["strategy=gossip", *EPOCH]
LIARS = (3, 10)  # not neighbours of each other on the ring

COLUMNS = {
    "all": "models on all test examples, %",
    "worst": "the worst model, %",
    "average": "the average model, %",
    "own": "models on their peer's own, %",
    "consensus": "consensus distance",
    "sent": "MB sent by a peer",
}

Arm = tuple[str, str, list[str]]  # its name, the preset and what differs from it


def graphs() -> list[Arm]:
    arms: list[Arm] = [("FedAvg, a server", "config", EPOCH)]
    arms += [(f"D-PSGD, {graph}", "config", [*GOSSIP, f"peers={graph}"]) for graph in GRAPHS]
    arms += [("DiLoCo, a server", "diloco", ["peers=none"])]
    arms += [(f"DiLoCo, {graph}", "diloco", [f"peers={graph}"]) for graph in GRAPHS]
    return arms


GRAPHS = ("full", "exponential", "torus", "ring")
RULES = (
    ("gossip", ["strategy=gossip"]),
    ("trimmed mean", ["strategy=trimmed_mean", "strategy.rule.f=1"]),
    ("clipped gossip", ["strategy=clipped_gossip"]),
)


def attacks() -> list[Arm]:
    sign_flip = ["attack=sign_flip", f"attack.adversaries=[{LIARS[0]},{LIARS[1]}]"]
    return [
        (
            f"{rule}, {graph}{', attacked' * bool(attack)}",
            "config",
            [*given, f"peers={graph}", "client.epochs=1", *attack],
        )
        for graph in ("ring", "random_regular")
        for rule, given in RULES
        for attack in ([], sign_flip)
    ]


def play(preset: str, given: list[str], seed: int) -> dict[str, float]:
    config = compose.resolved([*COMMON, *given, f"seed={seed}"], preset, hydra(None))
    population = build.simulated(config)
    sent = 0
    row: dict[str, Any] = {}
    with Simulation(lambda: population, population=population, engine=Batched) as network:
        state = population.strategy.init(population.scratch.initial, PEERS)
        schedule, account = build.schedule(config, population), build.account(config, population)
        for done in run_server(population.strategy, network, state, schedule, account=account, task=population.task):
            row, state = done.row, done.state
            sent += row["bytes_up"]
    own = row["per_client"]["accuracy"]
    honest = [peer for peer in range(PEERS) if peer not in LIARS] if config.attack.adversaries else list(range(PEERS))
    everywhere = [tested(population, state, peer) for peer in honest]
    return {
        "all": 100 * fmean(everywhere),
        "worst": 100 * min(everywhere),
        "own": 100 * fmean(own[str(peer)] for peer in honest),
        "consensus": row.get("consensus", 0.0),
        "sent": sent / PEERS / 1e6,
    } | ({"average": 100 * row["average"]["accuracy"]} if "average" in row else {})


def tested(population: Population, state: State, peer: int) -> float:
    """Return the accuracy of a peer's model on the test examples of all peers."""
    download = population.strategy.download(state, peer, Purpose.EVALUATE)
    assert download is not None
    right = examples = 0
    for other in range(PEERS):
        client = population.client(other, {})
        sums = answer(population.strategy, client, Purpose.EVALUATE, 0, download).tensors["sums"]
        right, examples = right + int(sums["correct"]), examples + int(sums["examples"])
    return right / examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("graphs", "attacks"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "FEDSHARE_DATA" not in os.environ:
        parser.error("FEDSHARE_DATA must name the folder that has MNIST/raw")
    more = [f"rounds={options.rounds}", f"evaluate_every={options.rounds}", *options.overrides]
    print("| " + " | ".join(("arm", *COLUMNS.values())) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for name, preset, given in (graphs if options.table == "graphs" else attacks)():
        found = [play(preset, [*given, *more], seed) for seed in range(options.seeds)]
        cells = [name]
        for key in COLUMNS:
            values = [one[key] for one in found if key in one]
            cells.append(f"{fmean(values):.1f} ± {pstdev(values):.1f}" if values else "")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
