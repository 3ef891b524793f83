"""FedAvg in pfl-research: `FederatedAveraging` on its simulated backend, in as many processes as there are cores.

The processes are started the way its guide of distributed simulations says, each with its rank in the environment.
"""
# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["pfl==0.6.0", "torch==2.13.0", "numpy==2.4.6"]
# ///

import os
import socket
import subprocess
import sys
import time
from itertools import pairwise

PROCESSES = os.cpu_count() or 1
RANK = "PFL_WORKER_RANK"


def train() -> None:
    import models
    import numpy as np
    import torch
    from arrays import LR, WORKLOADS, read
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel
    from report import arguments, report

    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002  pfl draws its cohorts from numpy's global generator, equally in all processes
    torch.manual_seed(0)
    options = arguments()
    workload = WORKLOADS[options.workload]
    x, y = (torch.from_numpy(array) for array in read(options.folder, options.workload))

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = models.make(options.workload)

        def loss(self, inputs: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> torch.Tensor:
            self.train(not eval)
            return torch.nn.functional.cross_entropy(self.network(inputs), labels)

        def metrics(self, inputs: torch.Tensor, labels: torch.Tensor, eval: bool = True) -> dict:
            return {"loss": Weighted(self.loss(inputs, labels, eval).item() * len(inputs), len(inputs))}

    class Clock(TrainingProcessCallback):
        def __init__(self) -> None:
            self.times = [time.perf_counter()]

        def after_central_iteration(self, *args: object, **more: object) -> tuple[bool, Metrics]:
            self.times.append(time.perf_counter())
            return False, Metrics()

    network = Network()
    clock = Clock()
    data = FederatedDataset(
        lambda client: PyTorchTensorDataset((x[client], y[client])),
        get_user_sampler("random", list(range(workload.clients))),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=options.repeat + 1,
            evaluation_frequency=options.repeat + 2,
            train_cohort_size=workload.chosen,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0)),
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=workload.batch),
        NNEvalHyperParams(local_batch_size=workload.examples),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    if os.environ[RANK] == "0":
        seconds = [after - before for before, after in pairwise(clock.times)]
        report(f"pfl-research, {PROCESSES} processes", options.workload, seconds, ["pfl", "torch"])


def main() -> None:
    """Start the processes and wait for them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    addresses = ",".join(f"localhost:{port + rank}" for rank in range(PROCESSES))
    environment = {**os.environ, "PFL_WORKER_ADDRESSES": addresses}
    processes = [
        subprocess.Popen([sys.executable, *sys.argv], env={**environment, RANK: str(rank)}) for rank in range(PROCESSES)
    ]
    sys.exit(max(process.wait() for process in processes))


if __name__ == "__main__":
    train() if RANK in os.environ else main()
