"""Choose and apply the device, GPU or CPU, on which each client of a host trains.

Nothing here loads torch before the place is applied, because CUDA and OpenMP read the environment once, when torch
loads.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice, takewhile
from typing import TypeVar

from fedshare.errors import UserError, first_line

Made = TypeVar("Made")
SMI_SECONDS = 15.0  # with many GPUs and no persistence mode, nvidia-smi takes several seconds


@dataclass(frozen=True)
class Place:
    """The device of one client. `memory` is the fraction of the GPU that it may use; None: no limit."""

    gpu: str | None
    memory: float | None
    threads: int

    @property
    def device(self) -> str:
        return "cpu" if self.gpu is None else "cuda"

    def environ(self) -> dict[str, str]:
        """The environment variables to set before torch loads."""
        threads = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.gpu is None:
            return threads | {"CUDA_VISIBLE_DEVICES": ""}
        return threads | {
            "CUDA_VISIBLE_DEVICES": self.gpu,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # CUDA's default puts the fastest GPU first, nvidia-smi does not
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # otherwise cuBLAS may change its order of summation between runs
        }

    def __str__(self) -> str:
        if self.gpu is None:
            return f"cpu, {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"gpu {self.gpu}" + (f" ({self.memory * 100:.0f} %)" if self.memory is not None else "")


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES allows, by number or UUID; if it is unset, all that nvidia-smi lists.

    Without nvidia-smi there are none. If it fails, or does not answer for 15 s, there are none either, and a line on
    stderr says so.
    """
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:  # CUDA ignores everything from the first entry that names no GPU, such as -1
        return list(dict.fromkeys(takewhile(_names_gpu, map(str.strip, allowed.split(",")))))
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(
            query, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SMI_SECONDS
        )
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired:
        return _no_gpu(f"did not answer in {SMI_SECONDS:g} s")
    except OSError as error:
        return _no_gpu(first_line(error))
    if listed.returncode:
        return _no_gpu((listed.stderr or listed.stdout).strip().split("\n")[0] or f"exit status {listed.returncode}")
    return [line.strip() for line in listed.stdout.splitlines() if line.strip().isdecimal()]


def _names_gpu(entry: str) -> bool:
    return entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))


def _no_gpu(reason: str) -> list[str]:
    print(f"warning: no GPU is used: nvidia-smi: {reason}", file=sys.stderr)
    return []


def places(
    clients: list[int],
    gpu: str,
    per_gpu: int | None,
    memory: float | None,
    threads: str,
    gpus: list[str],
    cores: int,
) -> dict[int, Place]:
    """Return the place of each client of a host that has the GPUs `gpus` and `cores` CPU cores.

    `gpu`: none, auto (`per_gpu` clients on each GPU, by default 1), or GPUs by name (any number of clients on each, or
    `per_gpu`). Clients take the GPUs in turn; those left over train on the CPU. `memory` is a fraction of one GPU: by
    default, nine tenths divided among the clients of a shared GPU. `threads`: a number, or auto for the cores divided
    among the clients. Raises UserError for a value out of range and for a GPU that does not exist.
    """
    if per_gpu is not None and per_gpu < 1:
        raise UserError(f"--per-gpu {per_gpu}: takes a number from 1 on")
    if memory is not None and not 0 < memory <= 1:
        raise UserError(f"--gpu-memory {memory:g}: takes a fraction of one GPU, above 0 and at most 1")
    _check_once("--id", list(map(str, clients)))
    chosen = {"none": [], "auto": gpus}.get(gpu)
    if chosen is None:
        chosen = _named(gpu, gpus)
    elif per_gpu is None:
        per_gpu = 1
    seats = None if per_gpu is None else per_gpu * len(chosen)
    seated = dict(zip(clients, islice(cycle(chosen), seats), strict=False))
    sharing = Counter(seated.values())
    count = _threads(threads, cores, len(clients))

    def place(name: str | None) -> Place:
        if name is None:
            return Place(None, None, count)
        fraction = 0.9 / sharing[name] if memory is None and sharing[name] > 1 else memory
        return Place(name, fraction, count)

    return {client: place(seated.get(client)) for client in clients}


def _named(gpu: str, gpus: list[str]) -> list[str]:
    names = [name.strip() for name in gpu.split(",")]
    for name in names:
        if name not in gpus:
            here = f"visible are {', '.join(gpus)}" if gpus else "none is visible; --gpu none trains on the CPU"
            raise UserError(f"--gpu {gpu}: no GPU {name!r} here; {here}")
    _check_once("--gpu", names)
    return names


def _check_once(option: str, names: list[str]) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"{option} {','.join(names)}: names {twice[0]} more than once")


def _threads(threads: str, cores: int, clients: int) -> int:
    if threads == "auto":
        return max(1, cores // max(1, clients))
    if not (threads.isascii() and threads.isdecimal() and int(threads)):
        raise UserError(f"--threads {threads}: takes a number from 1 on, or auto")
    return int(threads)


def apply(place: Place) -> None:
    """Apply `place` to this process. Raises RuntimeError if torch has loaded under another environment."""
    wanted = place.environ()
    late = [name for name, value in wanted.items() if os.environ.get(name) != value]
    if late and "torch" in sys.modules:
        raise RuntimeError(f"{place}: torch loaded before {', '.join(late)} was set")
    os.environ.update(wanted)


def limit(place: Place) -> None:
    """Load torch and limit it to the threads and memory of the place. Raises UserError if torch cannot use the GPU."""
    import torch

    torch.set_num_threads(place.threads)
    if place.gpu is None:
        return
    if not torch.cuda.is_available():
        raise UserError(f"{place}: torch {torch.__version__} cannot use it; --gpu none trains on the CPU")
    if place.memory is not None:
        torch.cuda.set_per_process_memory_fraction(place.memory)


def shared(build: Callable[[], Made], device: str, worker: int) -> Callable[[], Made]:
    """Return what builds in a worker process, by its number, as `build` does in this one.

    On ``cuda``, which names no GPU, workers take the GPUs in turn.
    """
    return partial(_on_gpu, worker, build) if device == "cuda" else build


def _on_gpu(number: int, build: Callable[[], Made]) -> Made:
    import torch

    torch.cuda.set_device(number % torch.cuda.device_count())
    return build()


def gpus(device: str) -> int:
    """Return how many GPUs `device` stands for: all that torch can use, if it is ``cuda`` and names none."""
    if device != "cuda":
        return int(device != "cpu")
    import torch

    return torch.cuda.device_count()
