"""FedCAC's server step compared with the straightforward double loop over clients, both on all cores.

    python benchmarks/fedcac.py
    python benchmarks/fedcac.py --clients 100 --parameters 1e6 --repeats 5

The double loop is that of the released code: for each ordered pair of clients the masks are subtracted, and each
client's model is summed over all its collaborators. There are two variants: with int32 masks in one vector, as
released, and with float32 masks per tensor, which torch handles faster. Each is timed in its own process. If a loop
would take longer than --patience seconds, only some rows are timed and extrapolated ("~"). If the clients' models need
more than --memory GB, only the overlaps are compared, the loop's on 20 clients. Memory is the peak during our step,
uploads included, as a multiple of the uploads: of the models and packed masks that a server must hold.
"""

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from memory import peak_of
from torch import Tensor

from fedshare import seeds
from fedshare.forms import masks
from fedshare.payload import Payload
from fedshare.strategies.fedcac import FedCAC, collaborators, overlaps
from fedshare.tensors import Tensors, mean

LAYERS = (0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01)  # shares of the parameters, by tensor
FEDCAC, ROUND = FedCAC(tau=0.5, beta=100), 1  # early, when about half of all pairs collaborate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", default="20,100,500")
    parser.add_argument("--parameters", default="1e5,1e6,1e7")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--memory", type=float, default=6.0)
    options = parser.parse_args()
    step, alone = "int loop | float loop | ours | ratio", "overlaps: int | float | ours | ratio"
    print(f"| clients | parameters | {step} | {alone} | memory |")
    print("|---" * 11 + "|", flush=True)
    for clients in map(int, options.clients.split(",")):
        for size in (int(float(text)) for text in options.parameters.split(",")):
            print("|", " | ".join((str(clients), f"{size:.0e}", *_cells(clients, size, options))), "|", flush=True)


def _cells(clients: int, size: int, options: argparse.Namespace) -> list[str]:
    whole = 4 * clients * size <= options.memory * 1e9
    step, alone, memory = _alone(_ours, clients, size, whole, options.repeats)
    loops = [_alone(_loop, kind, clients, size, whole, options.patience) for kind in ("int", "float")]
    cells = []
    for number, ours in enumerate((step, alone)):
        if ours is None:
            cells += ["", "", "", ""]
        else:
            ratios = ", ".join(f"{loop[number].seconds / ours:.0f}" for loop in loops)
            cells += [*(str(loop[number]) for loop in loops), _seconds(ours), ratios]
    return [*cells, memory]


def _alone(work: Callable[..., Any], *arguments: object) -> Any:
    """Run it in a new process: the allocator's state after one measurement would influence the next."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _ours(clients: int, size: int, whole: bool, repeats: int) -> tuple[float | None, float, str]:
    """Return the seconds of a step and of its overlaps, and the step's memory."""
    packed = [_critical(size, client) for client in range(clients)]
    step, memory = None, "models do not fit"
    if whole:
        start, uploads = FEDCAC.init(_model(size, 0)), _uploads(size, packed)
        held = sum(upload.nbytes for upload in uploads.values())
        peak = peak_of(lambda: FEDCAC.aggregate(start, ROUND, uploads))
        memory = f"{1 + peak / held:.2f} of {held / 1e6:,.0f} MB" if peak is not None else ""
        step = _median(lambda: FEDCAC.aggregate(start, ROUND, uploads), repeats)
    return step, _median(lambda: overlaps(packed), repeats), memory


def _loop(kind: str, clients: int, size: int, whole: bool, patience: float) -> tuple["Loop", "Loop"]:
    """Return the times of the double loop's step and of its overlaps, with masks of this kind."""
    packed = [_critical(size, client) for client in range(clients)]
    together = collaborators(overlaps(packed), ROUND, FEDCAC.beta)
    numbers = [_numbers(one, size) for one in packed[: clients if whole else 20]]
    pairs = clients * (clients - 1) / (len(numbers) * (len(numbers) - 1))
    if kind == "int":
        ints = [torch.cat([mask.int() for mask in one.values()]) for one in numbers]
        alone = _rows(lambda i: _int_overlaps(i, ints), len(ints), patience).times(pairs)
    else:
        alone = _rows(lambda i: _float_overlaps(i, numbers), len(numbers), patience).times(pairs)
    if not whole:
        return alone, alone
    models = [_model(size, client) for client in range(clients)]
    average = mean(models, [500.0] * clients)
    others = [together[i].nonzero().flatten().tolist() for i in range(clients)]
    custom = _rows(lambda i: _customise(i, others[i], models, numbers, average), clients, patience)
    return alone.plus(custom).plus(Loop(_median(lambda: mean(models, [500.0] * clients), 1), False)), alone


def _uploads(size: int, packed: list[Tensors]) -> dict[int, Payload]:
    return {
        client: Payload({"params": _model(size, client), "critical": mask}, {"examples": 500.0})
        for client, mask in enumerate(packed)
    }


def _int_overlaps(i: int, masks: list[Tensor]) -> list[float]:
    return [
        1 - float((masks[i] - other).abs().sum()) / float(masks[i].sum() * 2) for j, other in enumerate(masks) if i != j
    ]


def _float_overlaps(i: int, masks: list[Tensors]) -> list[float]:
    critical = 2 * sum(float(mask.sum()) for mask in masks[i].values())
    return [
        1 - sum(float((mask - other[name]).abs().sum()) for name, mask in masks[i].items()) / critical
        for j, other in enumerate(masks)
        if i != j
    ]


def _customise(i: int, together: list[int], models: list[Tensors], masks: list[Tensors], average: Tensors) -> Tensors:
    custom = {name: tensor.clone() for name, tensor in models[i].items()}
    for j in together:
        for name, tensor in custom.items():
            tensor += models[j][name]
    return {
        name: mask * (custom[name] / (1 + len(together))) + (1 - mask) * average[name]
        for name, mask in masks[i].items()
    }


def _critical(size: int, client: int) -> Tensors:
    """Return random packed masks of about half the coordinates; clients of one kind share a fifth of them."""
    random, like = seeds.generator("masks", client), seeds.generator("like", client % 5)
    packed = {}
    for name, length in _lengths(size).items():
        bits = torch.randint(256, (masks.packed_size(length),), dtype=torch.uint8, generator=random)
        common = len(bits) // 5
        bits[:common] = torch.randint(256, (common,), dtype=torch.uint8, generator=like)
        packed[name] = masks.pack(masks.unpack(bits, length))  # no bits beyond the last coordinate
    return packed


def _numbers(packed: Tensors, size: int) -> Tensors:
    return {name: masks.unpack(packed[name], length).float() for name, length in _lengths(size).items()}


def _model(size: int, client: int) -> Tensors:
    random = seeds.generator("model", client)
    return {name: torch.randn(length, generator=random) for name, length in _lengths(size).items()}


def _lengths(size: int) -> dict[str, int]:
    return {f"layer{number}": round(share * size) for number, share in enumerate(LAYERS)}


@dataclass(frozen=True)
class Loop:
    seconds: float
    guessed: bool  # extrapolated from some of its rows

    def __str__(self) -> str:
        return "~" * self.guessed + _seconds(self.seconds)

    def times(self, factor: float) -> "Loop":
        return Loop(self.seconds * factor, self.guessed or factor > 1)

    def plus(self, other: "Loop") -> "Loop":
        return Loop(self.seconds + other.seconds, self.guessed or other.guessed)


def _rows(row: Callable[[int], object], count: int, patience: float) -> Loop:
    began, done = time.perf_counter(), 0
    while done < count and time.perf_counter() - began < patience:
        row(done)
        done += 1
    return Loop((time.perf_counter() - began) * count / done, done < count)


def _median(step: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _seconds(value: float) -> str:
    return f"{value:,.{max(0, 1 - math.floor(math.log10(value)))}f} s"


if __name__ == "__main__":
    main()
