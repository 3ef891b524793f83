"""In one process messages arrive as over a network: as copies, both ways, which share nothing that can change."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, QFedAvg

from fedshare.transport.flower import private
from fedshare.transport.flower.inprocess import InProcessGrid
from fedshare.transport.flower.load import serve

NODES = 3
Play = Callable[[Message, Context], Message]


def records() -> RecordDict:
    """One of each kind of record, with one of each kind of value."""
    lists = {"bytes": [b"a", b"b"], "texts": ["a"], "numbers": [1, 2], "truths": [True], "none": []}
    return RecordDict(
        {
            "arrays": ArrayRecord([np.arange(3.0), np.zeros((0, 2), dtype=np.int8)]),
            "raw": ArrayRecord({"": Array(dtype="uint8", shape=(2,), stype="raw", data=b"xy")}),
            "metrics": MetricRecord({"loss": 0.5, "count": 3, "losses": [0.1, 0.2]}),
            "config": ConfigRecord({"lr": 0.1, "name": "a", "data": b"b", "yes": True, **lists}),
        }
    )


def spoil(content: RecordDict) -> None:
    """Change everything in place that can be changed."""
    for record in content.values():
        for key, value in list(record.items()):
            if isinstance(value, Array):
                value.data, value.shape, value.dtype = b"spoilt", (6,), "uint8"
            elif isinstance(value, list):
                value.append(value[0] if value else "spoilt")
            else:
                record[key] = 7
            record["spoilt"] = record.pop(key)
    for name in list(content):
        del content[name]
    content["spoilt"] = ConfigRecord({"spoilt": True})


def client(play: Play) -> ClientApp:
    app = ClientApp()
    app.train()(play)
    app.query()(play)
    app.evaluate()(play)
    return app


def playing(main: Callable[[Grid, Context], None], play: Play, nodes: int = NODES) -> None:
    app = ServerApp()
    app.main()(main)
    serve(app, InProcessGrid(client(play), nodes, {"rounds": 2}), {"rounds": 2})


def asked(grid: Grid, content: RecordDict) -> list[RecordDict]:
    """What all nodes answer to one and the same RecordDict."""
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    return [reply.content for reply in grid.send_and_receive(messages)]


def test_what_a_client_does_to_a_message_reaches_nobody_else() -> None:
    seen = []

    def play(message: Message, context: Context) -> Message:
        seen.append(copy.deepcopy(message.content))
        spoil(message.content)
        message.metadata.ttl = message.metadata.ttl + 1
        return Message(RecordDict(), reply_to=message)

    def main(grid: Grid, context: Context) -> None:
        content = records()
        asked(grid, content)
        assert content == records()

    playing(main, play)
    assert seen == [records()] * NODES


@pytest.mark.parametrize("kind", ["to_numpy_ndarrays", "to_torch_state_dict", "pop"])
def test_a_client_that_takes_its_message_apart_to_save_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`keep_input=False` is documented, and one RecordDict is in the messages to all nodes."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # Flower does so for each record that it takes apart, for long

    def play(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        if kind == "to_numpy_ndarrays":
            (array,) = arrays.to_numpy_ndarrays(keep_input=False)
        elif kind == "to_torch_state_dict":
            array = torch.clone(arrays.to_torch_state_dict(keep_input=False)["0"]).numpy()
        else:
            array = arrays.pop("0").numpy()
        content = {"arrays": ArrayRecord([array + 1]), "metrics": MetricRecord({"num-examples": 1, "loss": 0.0})}
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

    def main(grid: Grid, context: Context) -> None:
        result = FedAvg().start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=2)
        assert [array.tolist() for array in result.arrays.to_numpy_ndarrays()] == [[2.0, 2.0, 2.0]]

    playing(main, play)


def test_what_a_server_does_to_messages_and_replies_reaches_no_client() -> None:
    states = {}

    def play(message: Message, context: Context) -> Message:
        states[context.node_id] = context.state
        answer = records()
        for name, record in message.content.items():
            context.state[f"asked-{name}"] = record
        for name, record in answer.items():
            context.state[f"answered-{name}"] = record
        return Message(answer, reply_to=message)

    def main(grid: Grid, context: Context) -> None:
        content = records()
        messages = [Message(content, node, "train") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        spoil(content)
        for reply in replies:
            assert reply.content == records()
            spoil(reply.content)
            reply.metadata.ttl = 0.0

    playing(main, play)
    assert len(states) == NODES
    for state in states.values():
        for way in ("asked", "answered"):
            assert {name: state[f"{way}-{name}"] for name in records()} == records()


def test_what_a_client_keeps_and_changes_later_reaches_no_server() -> None:
    kept: list[RecordDict] = []

    def play(message: Message, context: Context) -> Message:
        for content in kept:
            spoil(content)
        context.state["config"] = records()["config"]
        kept[:] = [records(), message.content]
        return Message(kept[0], reply_to=message)

    def main(grid: Grid, context: Context) -> None:
        content = records()
        first, second = asked(grid, content), asked(grid, content)
        assert first == second == [records()] * NODES
        assert content == records()

    playing(main, play)


@pytest.mark.parametrize("who", ["client", "server", "strategy"])
def test_one_participants_config_is_nobody_elses(who: str) -> None:
    def play(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        content = {"seen": ConfigRecord({"rounds": context.run_config["rounds"], "lr": config["lr"]})}
        if who == "client":
            context.run_config["rounds"] = context.node_config["num-partitions"] = 99
            config["lr"] = 99.0
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

    def main(grid: Grid, context: Context) -> None:
        config = ConfigRecord({"lr": 0.1})
        messages = [Message(RecordDict({"config": config}), node, "train") for node in grid.get_node_ids()]
        ids = list(grid.push_messages(messages))
        if who == "server":
            context.run_config["rounds"] = 99
        if who == "strategy":
            config["lr"] = 99.0
        replies = [
            *grid.pull_messages(ids),
            *grid.send_and_receive([Message(RecordDict({"config": config}), 4, "train")]),
        ]
        seen = [dict(reply.content.config_records["seen"]) for reply in replies]
        assert seen[:NODES] == [{"rounds": 2, "lr": 0.1}] * NODES
        assert config["lr"] == (99.0 if who == "strategy" else 0.1)
        assert context.run_config["rounds"] == (99 if who == "server" else 2)

    playing(main, play)


def through_bytes(message: Message) -> Message:
    """What a network makes of a message."""
    if message.has_error():
        return private.received(copy.deepcopy(message.metadata), None, message.error)
    content = private.records_from_bytes(private.records_to_bytes(message.content))
    return private.received(copy.deepcopy(message.metadata), content, None)


@pytest.mark.parametrize("kind", [FedAvg, FedAdam, FedMedian, QFedAvg])
def test_every_strategy_gives_what_it_gives_over_a_network(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strategies put one RecordDict into all messages, and some take replies apart in place."""
    kept = []
    monkeypatch.setattr("gc.collect", lambda: 0)  # Flower does so for each record that it takes apart, for long

    def play(message: Message, context: Context) -> Message:
        arrays, id = message.content.array_records["arrays"], int(context.node_config["partition-id"])
        new = ArrayRecord([array * 0.5 + id for array in arrays.to_numpy_ndarrays(keep_input=False)])
        kept.append(new)
        metrics = MetricRecord({"num-examples": id + 1, "train_loss": float(id), "loss": float(id)})
        return Message(RecordDict({"arrays": new, "metrics": metrics}), reply_to=message)

    def result() -> list[bytes]:
        found: list[bytes] = []
        random.seed(0)  # Flower samples with it, and sums in the order of its sample

        def main(grid: Grid, context: Context) -> None:
            more = {"client_learning_rate": 0.1} if kind is QFedAvg else {}
            strategy = kind(train_metrics_aggr_fn=None, **more)
            done = strategy.start(grid=grid, initial_arrays=ArrayRecord([np.ones(3), np.arange(2.0)]), num_rounds=3)
            found.extend(array.data for array in done.arrays.values())

        playing(main, play)
        return found

    ours = result()
    assert all(len(record) == 2 for record in kept), "nobody took apart what a client kept"
    monkeypatch.setattr("fedshare.transport.flower.inprocess.copied", through_bytes)
    assert len(ours) == 2
    assert ours == result()


def test_a_copy_is_what_a_network_makes_of_a_message_and_shares_only_bytes() -> None:
    private.enter_run()
    message = Message(records(), 4, "train", group_id="a", ttl=5.0)
    message.content.array_records["raw"][""].shape = [2]  # type: ignore[assignment]
    found, expected = private.copied(message), through_bytes(message)
    assert found.content == expected.content == records()
    assert {name: type(record) for name, record in found.content.items()} == {
        name: type(record) for name, record in expected.content.items()
    }
    assert found.content.array_records["raw"][""].shape == (2,)
    assert vars(found.metadata) == vars(message.metadata)
    before, after = changeable(message), changeable(found)
    assert len(before) == len(after) == 16
    assert not {id(thing) for thing in before} & {id(thing) for thing in after}
    ours, theirs = (list(one.content.array_records["arrays"].values()) for one in (message, found))
    assert all(a.data is b.data for a, b in zip(ours, theirs, strict=True)), "a model is not copied"


def changeable(message: Message) -> list[object]:
    """All that a message holds and that can be changed in place."""
    found: list[object] = [message, message.metadata, message.content]
    for record in message.content.values():
        found += [record, *(value for value in record.values() if isinstance(value, (Array, list)))]
    return found


def test_an_error_is_copied_too() -> None:
    private.enter_run()
    asking = Message(RecordDict(), 4, "train")
    message = Message(Error(2, "why"), reply_to=asking)
    found = private.copied(message)
    assert (found.error.code, found.error.reason, found.has_content()) == (2, "why", False)
    assert found is not message
    assert found.metadata is not message.metadata
