"""The cost of the one-byte strategy's directions: adding up those of many messages, and perturbing a model in a step.

    python benchmarks/onebyte.py
    python benchmarks/onebyte.py --sizes 1e5,1e7 --entries 8,1000 --repeats 5
    python benchmarks/onebyte.py --threads 1 --quick

An entry is the direction of one probe; a message has eight of them. The first table has nanoseconds per parameter and
entry, on one core and on all, without numba and with it, compared with the seeded `normal_()` and `add_()` that a
Gaussian direction takes, and nanoseconds per parameter of `add_()` and `copy_()`, as a measure of the memory. Within a
line the measurements alternate, as often as --repeats says and --patience seconds allow; it shows medians, and medians
of the ratios. Gaussian directions are timed one at a time. Memory is the peak of the sum above its result, as a
multiple of the parameters in float32. Each line has its own process.

The second table has milliseconds of a step with eight probes on a transformer of ten million parameters, a batch of 16
texts of 32 tokens: of its forward passes alone, and with all that the directions take (a draw, 17 displacements, and
settling the remainder).
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from memory import peak_of
from torch import Tensor

from fedshare import seeds
from fedshare.directions import PROBES, Entry, Origin
from fedshare.directions.perturb import accumulate, displace, draw, settle
from fedshare.machine.devices import cores
from fedshare.models.text_transformer import TextTransformer

KINDS = ("numpy", "numba") if find_spec("numba") else ("numpy",)
VOCABULARY, TEXTS, TOKENS = 1500, 16, 32
EPSILON, FRACTION = 1e-3, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1e5,1e6,1e7")
    parser.add_argument("--entries", default="1,8,64,1000,10000")
    parser.add_argument("--threads", default=",".join(map(str, sorted({1, cores()}))))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="up to 1e6 parameters and 64 entries, and one step")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.entries, options.repeats = "1e5,1e6", "1,8,64", 3
    threads = [int(text) for text in options.threads.split(",")]
    kinds = [f"{kind} | ratio" for kind in KINDS]
    _header("threads", "parameters", "entries", "normal_ + add_", *kinds, "add_", "copy_", "memory")
    for count in threads:
        for size in (int(float(text)) for text in options.sizes.split(",")):
            for entries in map(int, options.entries.split(",")):
                cells = _alone(_sums, count, size, entries, options.repeats, options.patience)
                print("|", " | ".join((str(count), f"{size:.0e}", f"{entries:,}", *cells)), "|", flush=True)
    print()
    step(threads, 1 if options.quick else options.repeats, options.patience)


def step(threads: list[int], repeats: int, patience: float) -> None:
    """Compare a step with its forward passes."""
    _header("threads", "forward", *(f"{kind} | ratio | draw | displace | settle" for kind in KINDS))
    for count in threads:
        print("|", " | ".join((str(count), *_alone(_step, count, repeats, patience))), "|", flush=True)


def _sums(threads: int, size: int, entries: int, repeats: int, patience: float) -> list[str]:
    torch.set_num_threads(threads)
    sums, random = torch.zeros(size, dtype=torch.int32), seeds.generator("onebyte")
    vector, direction = torch.zeros(size), torch.ones(size)
    messages = _messages(entries)

    def gaussian() -> None:
        vector.add_(direction.normal_(generator=random), alpha=EPSILON)

    works: dict[str, Callable[[], object]] = {"gaussian": gaussian}
    works |= {kind: _with(kind, lambda: accumulate(sums, messages)) for kind in KINDS}
    works |= {"add": lambda: vector.add_(direction), "copy": lambda: vector.copy_(direction)}
    few = _messages(PROBES)
    for kind in KINDS:
        _with(kind, lambda: accumulate(sums, few))()
    peak = peak_of(works["numpy"])
    times = _in_turn(works, repeats, patience)
    cells = [_nanoseconds(times["gaussian"], size)]
    for kind in KINDS:
        ratio = statistics.median(g * entries / t for g, t in zip(times["gaussian"], times[kind], strict=True))
        cells += [_nanoseconds(times[kind], size * entries), f"{ratio:.1f}"]
    memory = "" if peak is None else f"{peak / (4 * size):.2f}"
    return [*cells, _nanoseconds(times["add"], size), _nanoseconds(times["copy"], size), memory]


def _messages(entries: int) -> list[Entry]:
    return [
        (Origin(1, 0, number), [2**13 + first + probe for probe in range(min(PROBES, entries - first))])
        for number, first in enumerate(range(0, entries, PROBES))
    ]


def _step(threads: int, repeats: int, patience: float) -> list[str]:
    torch.set_num_threads(threads)
    model, vector = _model()
    initial, sums = vector.clone(), torch.zeros(len(vector), dtype=torch.int32)
    random = seeds.generator("texts")
    texts = torch.randint(VOCABULARY, (TEXTS, TOKENS + 1), generator=random)
    spent: dict[str, float] = {}

    @torch.no_grad()
    def forward() -> Tensor:
        return F.cross_entropy(model(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten())

    def passes() -> None:
        for _ in range(2 * PROBES):
            forward()

    def perturbed() -> None:
        spent.clear()
        with _timed(spent, "draw"):
            drawn = draw(Origin(1, 2, 3), len(vector), "cpu")
        for probe in range(PROBES):
            with _timed(spent, "displace"):
                displace(vector, drawn, [0.0] * (probe - 1) + [EPSILON] * min(probe + 1, 2))
            forward()
            with _timed(spent, "displace"):
                displace(vector, drawn, [0.0] * probe + [-2 * EPSILON])
            forward()
        with _timed(spent, "displace"):
            displace(vector, drawn, [0.0] * (PROBES - 1) + [EPSILON])
        with _timed(spent, "settle"):
            settle(vector, initial, sums, FRACTION)

    details: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}

    def noted(kind: str) -> Callable[[], None]:
        def work() -> None:
            _with(kind, perturbed)()
            details[kind].append(dict(spent))

        return work

    works: dict[str, Callable[[], object]] = {"forward": passes, **{kind: noted(kind) for kind in KINDS}}
    for work in works.values():
        work()
    times = _in_turn(works, repeats, patience)
    cells = [_milliseconds(times["forward"])]
    for kind in KINDS:
        ratio = statistics.median(t / f for t, f in zip(times[kind], times["forward"], strict=True))
        parts = [_milliseconds([each[part] for each in details[kind][1:]]) for part in ("draw", "displace", "settle")]
        cells += [_milliseconds(times[kind]), f"{ratio:.2f}", *parts]
    return cells


def _model() -> tuple[TextTransformer, Tensor]:
    """Return a model in evaluation mode, and the vector of its parameters."""
    model = TextTransformer(VOCABULARY, TOKENS, VOCABULARY, dim=384, depth=5, heads=6, causal=True).eval()
    parameters = list(model.parameters())
    vector = torch.cat([parameter.detach().flatten() for parameter in parameters])
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view(parameter.shape)
    return model, vector


def _with(kind: str, work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        os.environ["FEDSHARE_KERNELS"] = kind
        work()

    return run


def _in_turn(works: dict[str, Callable[[], object]], repeats: int, patience: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    began = time.perf_counter()
    for turn in range(repeats):
        if turn and (time.perf_counter() - began) * (turn + 1) / turn > patience:
            break
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[name] = spent.get(name, 0.0) + time.perf_counter() - began


def _alone(work: Callable[..., Any], *arguments: object) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _header(*columns: str) -> None:
    row = "| " + " | ".join(columns) + " |"
    print(row, "|---" * (row.count("|") - 1) + "|", sep="\n", flush=True)


def _nanoseconds(times: list[float], count: int) -> str:
    return f"{statistics.median(times) / count * 1e9:.3f}"


def _milliseconds(times: list[float]) -> str:
    return f"{statistics.median(times) * 1e3:.0f}"


if __name__ == "__main__":
    main()
