"""What a client does when it is asked to train, and when it is asked to evaluate."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import TensorDataset

from .task import Net, load, test, train

app = ClientApp()


@app.train()
def on_train(message: Message, context: Context) -> Message:
    net, (data, _), config = _net(message), _data(context), context.run_config
    round = int(message.content["config"]["server-round"])
    seed = int(config["seed"]) + 1000 * round + int(context.node_config["partition-id"])
    loss = train(net, data, int(config["local-epochs"]), int(config["batch-size"]), float(config["lr"]), seed)
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(data)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@app.evaluate()
def on_evaluate(message: Message, context: Context) -> Message:
    net, (_, data) = _net(message), _data(context)
    loss, accuracy = test(net, data)
    metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _net(message: Message) -> Net:
    net = Net()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return net


def _data(context: Context) -> tuple[TensorDataset, TensorDataset]:
    return load(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
