"""One-byte by flooding among many peers: bytes that each sends, and whether all end with the same bits.

    python benchmarks/flood.py [GRAPH ...] [--peers N] [--rounds N] [--loss P] [--duplicates P] [--remove PEER ...]

GRAPH: ring, torus, random_regular, or another option of `peers=`. Each peer takes one measurement a round of a logistic
regression on the digits that ship with scikit-learn, of which each has a few. Afterwards all peers' sums must be equal,
and those of the ledger; with --remove, those of the ledger without these peers.
"""

import argparse
import time

import torch

from fedshare.engine.batched import Batched
from fedshare.experiments.config import build, compose
from fedshare.experiments.config.application import hydra
from fedshare.ledger.meaning import Meaning
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import Transcript
from fedshare.rounds import run_server
from fedshare.simulation import Simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", nargs="*", default=["ring", "torus", "random_regular"])
    parser.add_argument("--peers", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--duplicates", type=float, default=0.0)
    parser.add_argument("--remove", type=int, nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for graph in options.graphs:
        play(graph, options)


def play(graph: str, options: argparse.Namespace) -> None:
    given = [f"peers={graph}", "strategy=onebyte", "strategy.probes=1", "data=digits", "model=logistic"]
    given += ["partition=iid", f"partition.clients={options.peers}", f"rounds={options.rounds}", "evaluate_every=0"]
    given += [f"peers.flood.loss={options.loss}", f"peers.flood.duplicates={options.duplicates}"]
    if options.remove:
        given.append(f"peers.flood.remove={[[options.rounds, peer] for peer in options.remove]}")
    config = compose.resolved([*given, "clients_per_round=null", "tracking=none"], "config", hydra(None))
    population = build.simulated(config)
    began = time.perf_counter()
    sent, commits = torch.zeros(options.peers, dtype=torch.int64), []
    with Simulation(lambda: population, population=population, engine=Batched) as network:
        state = population.strategy.init(population.scratch.initial, options.peers)
        for done in run_server(population.strategy, network, state, build.schedule(config, population)):
            state = done.state
            sent += state["flood"]["sent"]
            meaning = Meaning.of(state["manifest"])
            commits.append(Transcript.restore(state["ledger"], meaning.manifest).last)
    sums = Sums.zeros(state["flood"]["sums"].shape[1])
    for commit in commits:
        for peer in options.remove:
            commit = commit.without(peer)
        sums.add(meaning.directions, meaning.entries(commit))
    equal = int((state["flood"]["sums"] == sums.values).all(1).sum())
    print(
        f"{graph:<15} {options.peers:,} peers, {options.rounds} rounds: {equal:,} peers have the ledger's bits; "
        f"sent by a peer: mean {sent.double().mean() / 1e3:.0f} kB, most {int(sent.max()) / 1e3:.0f} kB; "
        f"{time.perf_counter() - began:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
