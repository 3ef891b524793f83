"""Federated averaging of the small network; the last line says what it reached."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from .task import Net, load, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    rounds, nodes, fraction = int(config["num-server-rounds"]), int(config["min-nodes"]), config["fraction-evaluate"]
    torch.manual_seed(int(config["seed"]))
    strategy = FedAvg(
        fraction_evaluate=float(fraction), min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes
    )
    start = ArrayRecord(Net().state_dict())
    result = strategy.start(grid, start, num_rounds=rounds, evaluate_fn=evaluate)
    last = result.evaluate_metrics_serverapp[rounds]
    print(f"quickstart: after {rounds} rounds, accuracy {last['accuracy']:.3f}, loss {last['loss']:.3f}", flush=True)


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """The global model on the digits that no client trains on."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(net, load(0, 1)[1])
    return MetricRecord({"loss": loss, "accuracy": accuracy})
