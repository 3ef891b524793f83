"""FedAvg in BlazeFL: the trainers of its `contrib`, in threads, which it recommends, and one client after another.

BlazeFL 3 asks for Python 3.14 and recommends its free-threaded build. On an older Python, annotations that are
not of that Python are rewritten in the environment; the versions that are printed say on which Python it ran.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy==2.4.6", "tqdm==4.67.1"]
# [tool.peer]
# preferred = ["python3.14t", "python3.14"]
# regardless = ["blazefl==3.0.0"]  # of the Python that it asks for
# ///

import importlib.util
import os
import re
import sys
import time
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"

import models
import torch
from arrays import LR, WORKLOADS, read
from report import arguments, report
from torch.utils.data import DataLoader, TensorDataset

UNEVALUATED = "from __future__ import annotations\n"


def adapt() -> None:
    """Let Python 3.11 to 3.13 read BlazeFL: no type parameters (PEP 695), and annotations that are not evaluated."""
    spec = importlib.util.find_spec("blazefl")
    assert spec is not None
    assert spec.origin is not None
    for path in Path(spec.origin).parent.rglob("*.py"):
        text = path.read_text()
        if not text.startswith(UNEVALUATED):
            path.write_text(UNEVALUATED + re.sub(r"^(def \w+)\[T\]", r"\1", text, flags=re.M))


if sys.version_info < (3, 14):
    adapt()
from blazefl.contrib import fedavg  # noqa: E402


class Clients:
    """The clients' examples, in the form that BlazeFL asks for."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.parts = [TensorDataset(*part) for part in zip(x, y, strict=True)]

    def get_dataloader(self, type_: str, cid: int, batch_size: int, generator: torch.Generator) -> DataLoader:
        return DataLoader(self.parts[cid], batch_size=batch_size, shuffle=True, generator=generator)


class Models:
    def select_model(self, model_name: str) -> torch.nn.Module:
        return models.make(model_name)


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    workload, cores = WORKLOADS[options.workload], os.cpu_count() or 1
    x, y = (torch.from_numpy(array) for array in read(options.folder, options.workload))
    base = {"model_selector": Models(), "model_name": options.workload, "dataset": Clients(x, y), "device": "cpu"}
    common = {**base, "num_clients": workload.clients, "batch_size": workload.batch, "seed": 0}
    trainers = {
        f"BlazeFL, {cores} threads": fedavg.FedAvgThreadPoolClientTrainer(
            **common, epochs=1, lr=LR, num_parallels=cores
        ),
        "BlazeFL, serial": fedavg.FedAvgBaseClientTrainer(**common, epochs=1, lr=LR),
    }
    ratio = workload.chosen / workload.clients
    for way, trainer in trainers.items():
        rounds = options.repeat + 1
        server = fedavg.FedAvgBaseServerHandler(**common, global_round=rounds, sample_ratio=ratio)
        seconds = []
        while not server.is_stopped():
            began = time.perf_counter()
            chosen = server.sample_clients()
            trainer.local_process(server.downlink_package(), chosen)
            for upload in trainer.uplink_package():
                server.load(upload)
            seconds.append(time.perf_counter() - began)
        assert len(chosen) == workload.chosen
        report(way, options.workload, seconds, ["blazefl", "torch"])


if __name__ == "__main__":
    main()
