"""FedAvg in Flower's simulation on Ray: its own `FedAvg`, an actor per core, apps as in its quickstart for PyTorch."""
# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["flwr[simulation]==1.42.0", "torch==2.13.0", "numpy==2.4.6"]
# ///

import logging
import os
import time
from itertools import pairwise

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import flower_client
import models
from arrays import WORKLOADS
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from report import arguments, report


def main() -> None:
    options = arguments()
    workload = WORKLOADS[options.workload]
    os.environ |= {flower_client.FOLDER: str(options.folder.resolve()), flower_client.NAME: options.workload}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    app, times = ServerApp(), list[float]()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=workload.chosen / workload.clients,
            fraction_evaluate=0.0,
            min_train_nodes=workload.chosen,
            min_available_nodes=workload.clients,
        )
        model = ArrayRecord(models.make(options.workload).state_dict())
        # It is called before the first round and after each.
        strategy.start(
            grid, model, options.repeat + 1, evaluate_fn=lambda round, arrays: times.append(time.perf_counter())
        )

    cores = os.cpu_count() or 1
    resources: dict = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    alone = {"init_args": {"address": "local", "num_cpus": cores}}  # else it joins any Ray that runs on this machine
    run_simulation(app, flower_client.app, workload.clients, backend_config=resources | alone)
    seconds = [after - before for before, after in pairwise(times)]
    report(f"Flower on Ray, {cores} actors", options.workload, seconds, ["flwr", "ray", "torch"])


if __name__ == "__main__":
    main()
