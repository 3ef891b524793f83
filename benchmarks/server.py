"""CPU time of a server's arithmetic in a round, as a multiple of one pass over all uploads (the time of their sum).

    python benchmarks/server.py [CASE ...] [--only PART,PART] [--uploads vectors|rows|apart] [--repeat N]

Medians of one thread. CPU time and not time on the clock, so that other work on the machine disturbs it little; what
runs on several threads is their sum. `--uploads` is how the tensors of an upload lie in memory: as parts of a vector of
its client's own (the plain engine), as parts of a row of one matrix (the batching engine), or each by itself.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median

import torch

from fedshare import seeds
from fedshare.machine.threads import one_thread
from fedshare.payload import Payload
from fedshare.rounds import Schedule
from fedshare.rounds.account import Account
from fedshare.rounds.influence import Watch
from fedshare.rounds.steps import concluded
from fedshare.rules import Median, TrimmedMean
from fedshare.rules.matrix import squared_distances, updates_of
from fedshare.strategies.fedavg import FedAvg
from fedshare.strategies.foolsgold import FoolsGold
from fedshare.strategies.rffl import RFFL
from fedshare.tensors import Tensors, mean

Shapes = list[tuple[int, ...]]


def perceptron(*widths: int) -> Shapes:
    return [shape for a, b in pairwise(widths) for shape in ((b, a), (b,))]


def resnet(*widths: int) -> Shapes:
    """The shapes of ResNet-18 for small images."""

    def layer(inputs: int, outputs: int, size: int) -> Shapes:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes, before = layer(3, widths[0], 3), widths[0]
    for width in widths:
        shapes += layer(before, width, 3) + 3 * layer(width, width, 3)
        shapes += layer(before, width, 1) if before != width else []
        before = width
    return [*shapes, (10, before), (10,)]


CASES: dict[str, tuple[int, Shapes]] = {  # uploads, and the shapes of a model's tensors
    "logistic": (200, perceptron(60, 10)),
    "perceptron": (200, perceptron(784, 32, 10)),
    "wide": (50, perceptron(784, 200, 200, 10)),
    "resnet": (10, resnet(64, 128, 256, 512)),
}


def models(count: int, shapes: Shapes, kind: str) -> list[Tensors]:
    sizes = [math.prod(shape) for shape in shapes]
    matrix = torch.randn(count, sum(sizes), generator=seeds.generator("server"))
    rows = [row if kind == "rows" else row.clone() for row in matrix.unbind()]
    found = [[p.view(s) for p, s in zip(row.split(sizes), shapes, strict=True)] for row in rows]
    return [{str(i): p.clone() if kind == "apart" else p for i, p in enumerate(pieces)} for pieces in found]


def parts(count: int, shapes: Shapes, kind: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the parts of a round's arithmetic by name; the first is one pass over all uploads."""
    start, *sent = models(count + 1, shapes, kind)
    stacked = updates_of(sent, start)
    yield "one pass", stacked.sum
    weights = [float(1 + client % 7) for client in range(count)]
    metrics = [{"examples": weight, "train_loss": 1.0} for weight in weights]
    uploads = {c: Payload({"params": model}, metrics[c]) for c, model in enumerate(sent)}
    downloads = {client: Payload({"params": start}) for client in uploads}
    schedule, watch = Schedule(rounds=1, seed=0), Watch()
    strategy, state = FedAvg(), {"params": start}
    yield "FedAvg: checks and mean", lambda: concluded(strategy, state, 1, uploads, downloads, {}, schedule, watch)
    yield "weighted mean", lambda: mean(sent, weights)
    yield "account of bytes", lambda: Account({}, 1).row(uploads.values(), (), downloads.values())
    yield "norms", lambda: Watch(1e9).outliers(uploads, downloads)
    updates = {c: Payload({"update": upload.tensors["params"]}, upload.metrics) for c, upload in uploads.items()}
    yield "RFFL", lambda: RFFL().aggregate(RFFL().init(start, count), 1, updates)
    yield "FoolsGold", lambda: FoolsGold().aggregate(FoolsGold().init(start, count), 1, uploads)
    yield "updates as a matrix", lambda: updates_of(sent, start)
    yield "median", lambda: Median()(stacked, stacked[0])
    yield "trimmed mean", lambda: TrimmedMean(count // 10)(stacked, stacked[0])
    yield "Krum's distances", lambda: squared_distances(stacked)


def seconds(work: Callable[[], object], repeat: int) -> float:
    taken = list[float]()
    for _ in range(repeat):
        calls, start = 0, time.process_time()
        while calls == 0 or time.process_time() - start < 0.02:
            work()
            calls += 1
        taken.append((time.process_time() - start) / calls)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--only", help="parts whose names begin like one of these, with commas")
    parser.add_argument("--uploads", choices=("vectors", "rows", "apart"), default="vectors")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    only = tuple(options.only.split(",")) if options.only else ("",)
    for case in options.cases or CASES:
        count, shapes = CASES[case]
        print(
            f"{case}: {count} uploads of {sum(map(math.prod, shapes)):,} numbers in {len(shapes)} tensors", flush=True
        )
        once = 0.0
        with one_thread():
            for name, work in parts(count, shapes, options.uploads):
                if once and not name.startswith(only):
                    continue
                taken = seconds(work, options.repeat)
                once = once or taken
                print(f"  {name:<24}{1e3 * taken:10.3f} ms {taken / once:8.1f} x", flush=True)


if __name__ == "__main__":
    main()
