"""An app that waits for more nodes than there will be is ended in one line; one that only asks often is not."""

import gc
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdagrad, FedAvg, FedXgbCyclic, Krum

import fedshare
from deployed import Command, flower_app
from fedshare.errors import UserError
from fedshare.experiments.cli import main
from fedshare.transport.flower import private, waiting
from fedshare.transport.flower.inprocess import InProcessGrid
from fedshare.transport.flower.load import serve
from fedshare.transport.flower.stream import StreamGrid
from fedshare.transport.flower.waiting import Waiting
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.settings import Settings

PATIENCE = 10.0
Main = Callable[[Grid, Context], None]


class Clock:
    """Time that passes when somebody sleeps or computes."""

    def __init__(self) -> None:
        self.now = self.computed = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def compute(self, seconds: float) -> None:
        self.now += seconds
        self.computed += seconds


def client() -> ClientApp:
    app = ClientApp()

    @app.train()
    @app.evaluate()
    def answer(message: Message, context: Context) -> Message:
        content = {"metrics": MetricRecord({"num-examples": 1, "loss": 0.0})}
        if "arrays" in message.content:
            content["arrays"] = message.content["arrays"]  # type: ignore[assignment]
        if message.metadata.message_type == "evaluate":
            content.pop("arrays", None)
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

    return app


def play(main: Main, nodes: int, clock: Clock | None = None) -> InProcessGrid:
    app, grid = ServerApp(), InProcessGrid(client(), nodes, {})
    if clock:
        grid.waiting = Waiting(nodes, "--nodes", PATIENCE, lambda: clock.now, lambda: clock.computed)
    app.main()(main)
    serve(app, grid, {})
    return grid


# Flower's own code waits: it is known at once, and for how many.


@pytest.mark.parametrize(
    ("strategy", "nodes", "wanted"),
    [
        (FedAvg(), 1, 2),
        (FedAvg(fraction_evaluate=0.0), 1, 2),
        (FedAvg(min_available_nodes=7), 3, 7),
        (FedAvg(min_train_nodes=5), 3, 5),
        (FedAvg(min_evaluate_nodes=6), 3, 6),  # after a round of training
        (FedAvg(fraction_train=0.5, min_train_nodes=4), 3, 4),
        (FedAvg(fraction_train=0.1, min_available_nodes=1), 1, 2),  # never below min_train_nodes
        (FedAvg(fraction_train=0.0, min_evaluate_nodes=4), 2, 4),
        (Krum(min_available_nodes=5), 4, 5),
        (FedAdagrad(min_train_nodes=9), 8, 9),
        (FedXgbCyclic(), 1, 2),
    ],
)
def test_a_strategy_that_waits_for_more_nodes_than_there_are(strategy: FedAvg, nodes: int, wanted: int) -> None:
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid, ArrayRecord([np.ones(2)]), num_rounds=1)

    line = f"^the app waits for {wanted} nodes, and --nodes {nodes} is all there will be$"
    with pytest.raises(UserError, match=line):
        play(main, nodes)


@pytest.mark.parametrize(
    ("strategy", "nodes"),
    [
        (FedAvg(), 2),
        (FedAvg(min_available_nodes=3, min_train_nodes=1, min_evaluate_nodes=3), 3),
        (FedAvg(fraction_train=0.1, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1), 1),
    ],
)
def test_a_strategy_for_which_there_are_enough(strategy: FedAvg, nodes: int) -> None:
    def main(grid: Grid, context: Context) -> None:
        found.append(strategy.start(grid, ArrayRecord([np.ones(2)]), num_rounds=2))

    found: list[object] = []
    play(main, nodes)
    assert len(found) == 1


OLD = """
import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

class Client(NumPyClient):
    get_parameters = lambda self, config: [np.zeros(2)]
    fit = lambda self, parameters, config: (parameters, 1, {{}})
    evaluate = lambda self, parameters, config: (0.5, 1, {{}})

components = ServerAppComponents(strategy=FedAvg({strategy}), config=ServerConfig(num_rounds=1))
server = ServerApp(server_fn=lambda context: components)
client = ClientApp(client_fn=lambda context: Client().to_client())
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("strategy", "nodes", "line"),
    [
        ("", 1, "fedshare: the app waits for 2 nodes, and --nodes 1 is all there will be"),
        ("fraction_fit=0.1, min_available_clients=5", 3, "fedshare: the app waits for 5 nodes, and --nodes 3 is all"),
        ("min_available_clients=3", 3, "round 1: 0.5"),
    ],
)
def test_flowers_old_interface_waits_in_a_thread_of_its_own(
    strategy: str, nodes: int, line: str, tmp_path: Path
) -> None:
    app = str(flower_app(tmp_path, OLD.format(strategy=strategy)))
    with Command(tmp_path, "flower-run", app, "--nodes", str(nodes)) as ran:
        assert ran.wait() == (2 if line.startswith("fedshare") else 0), ran.said
        assert line in ran.said
        assert "Traceback" not in ran.said


def test_a_stream_admits_no_more_clients_than_it_was_told_of() -> None:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        FedAvg(min_available_nodes=4).start(grid, ArrayRecord([np.ones(2)]))

    server = StreamServer("127.0.0.1:0", None, Settings(fedshare.__version__, clients=3))
    server.start()
    try:
        with pytest.raises(UserError, match="the app waits for 4 nodes, and --clients 3 is all there will be"):
            serve(app, StreamGrid(server), {})
    finally:
        server.close("")


# An app's own loop.


def loop(grid: Grid, clock: Clock) -> None:
    while len(list(grid.get_node_ids())) < 5:
        clock.sleep(1)


def counting_loop(grid: Grid, clock: Clock) -> None:
    tries = 0
    while True:
        tries += 1
        if len(list(grid.get_nodes())) >= 5:
            break
        clock.sleep(3)


def telling_loop(grid: Grid, clock: Clock) -> None:
    while len(list(grid.get_node_ids())) < 5:
        clock.sleep(0.1 if len(list(grid.get_node_ids())) else 0.2)


def loop_after_work(grid: Grid, clock: Clock) -> None:
    grid.send_and_receive([Message(RecordDict(), node, "train") for node in grid.get_node_ids()])
    clock.compute(100)
    loop(grid, clock)


def slow_loop(grid: Grid, clock: Clock) -> None:
    while len(list(grid.get_node_ids())) < 5:
        clock.sleep(60)


def loop_that_computes_a_little(grid: Grid, clock: Clock) -> None:
    while len(list(grid.get_node_ids())) < 5:
        clock.compute(0.05)
        clock.sleep(1)


LOOPS = [loop, counting_loop, telling_loop, loop_after_work, slow_loop, loop_that_computes_a_little]


@pytest.mark.parametrize("ask", LOOPS)
def test_an_app_that_only_asks_for_its_nodes_is_ended(ask: Callable[[Grid, Clock], None]) -> None:
    clock = Clock()
    line = r"^the app asked for its nodes for 10 s \(--wait\) and sent nothing: --nodes 3 is all there will be$"
    with pytest.raises(UserError, match=line):
        play(lambda grid, context: ask(grid, clock), 3, clock)
    assert PATIENCE <= clock.now - 100 * (ask is loop_after_work) <= (300 if ask is slow_loop else 20)


def test_a_loop_without_a_pause_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_ENDLESS", 1000)
    clock, asked = Clock(), 0

    def main(grid: Grid, context: Context) -> None:
        nonlocal asked
        while len(list(grid.get_node_ids())) < 5:
            asked += 1
            clock.compute(1)

    with pytest.raises(UserError, match="--nodes 3 is all there will be"):
        play(main, 3, clock)
    assert asked >= 1000


# Apps that ask often and do something.


def asks_for_each_message(grid: Grid, clock: Clock) -> None:
    messages = []
    for number in range(2000):
        nodes = list(grid.get_node_ids())
        clock.compute(0.02)
        messages.append(Message(RecordDict(), nodes[number % len(nodes)], "train"))
    assert len(list(grid.send_and_receive(messages))) == 2000


def asks_between_messages(grid: Grid, clock: Clock) -> None:
    for _ in range(100):
        (node, *_) = grid.get_node_ids()
        clock.sleep(1)
        grid.send_and_receive([Message(RecordDict(), node, "train")])


def waits_for_a_while(grid: Grid, clock: Clock) -> None:
    until = clock.now + 9
    while clock.now < until and len(list(grid.get_node_ids())) < 5:
        clock.sleep(1)


def computes_between_questions(grid: Grid, clock: Clock) -> None:
    for _ in range(50):
        assert len(list(grid.get_node_ids())) == 3
        clock.compute(20)


def was_stopped_for_a_night(grid: Grid, clock: Clock) -> None:
    for number in range(4):
        assert len(list(grid.get_node_ids())) == 3
        clock.sleep(30000 if number == 2 else 1)


def asks_from_many_places(grid: Grid, clock: Clock) -> None:
    assert len(list(grid.get_node_ids())) == 3
    clock.sleep(30)
    assert len(list(grid.get_nodes())) == 3
    clock.sleep(30)
    assert set(grid.get_node_ids()) == {2, 3, 4}
    clock.sleep(30)
    assert len(list(grid.get_node_ids())) == 3


def asks_from_another_thread(grid: Grid, clock: Clock) -> None:
    def watch() -> None:
        for _ in range(100):
            counts.append(len(list(grid.get_node_ids())))
            clock.sleep(1)

    counts: list[int] = []
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert counts == [3] * 100


BUSY = [
    *(asks_for_each_message, asks_between_messages, waits_for_a_while, computes_between_questions),
    *(was_stopped_for_a_night, asks_from_many_places, asks_from_another_thread),
]


@pytest.mark.parametrize("ask", BUSY)
def test_an_app_that_does_something_is_left_alone(ask: Callable[[Grid, Clock], None]) -> None:
    clock, ended = Clock(), []

    def main(grid: Grid, context: Context) -> None:
        ask(grid, clock)
        ended.append(True)

    play(main, 3, clock)
    assert ended


def test_while_a_message_is_at_work_an_app_may_ask_as_long_as_it_likes() -> None:
    clock, app = Clock(), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        training.set()
        assert asked.wait(60)
        return Message(RecordDict(), reply_to=message)

    training, asked = threading.Event(), threading.Event()
    grid = InProcessGrid(app, 3, {})
    grid.waiting = Waiting(3, "--nodes", PATIENCE, lambda: clock.now, lambda: clock.computed)
    sender = threading.Thread(target=lambda: grid.send_and_receive([Message(RecordDict(), 2, "train")]))
    sender.start()
    try:
        assert training.wait(60)
        for _ in range(100):
            assert len(list(grid.get_node_ids())) == 3
            clock.sleep(1)
    finally:
        asked.set()
        sender.join()
    with pytest.raises(UserError, match="is all there will be"):
        loop(grid, clock)


# The command.

WAITING = """
import time
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
server, client = ServerApp(), ClientApp()

@server.main()
def main(grid, context):
    print("begins", flush=True)
    while len(list(grid.get_node_ids())) < context.run_config["nodes"]:
        time.sleep(0.05)
    print("went on", flush=True)
"""


def test_the_command_says_it_in_one_line_and_ends_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app = str(flower_app(tmp_path, WAITING, "nodes = 3"))
    with pytest.raises(SystemExit) as ended:
        main(["flower-run", app, "--nodes", "2", "--wait", "0.3"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    line = "fedshare: the app asked for its nodes for 0.3 s (--wait) and sent nothing: --nodes 2 is all there will be\n"
    assert said.err == line
    assert "went on" not in said.out
    with pytest.raises(SystemExit) as ended:
        main(["flower-run", app, "--nodes", "3", "--wait", "0.3"])
    assert not ended.value.code
    assert "went on" in capsys.readouterr().out


@pytest.mark.process
def test_ctrl_c_is_still_ctrl_c(tmp_path: Path) -> None:
    app = str(flower_app(tmp_path, WAITING, "nodes = 3"))
    with Command(tmp_path, "flower-run", app, "--nodes", "2", "--wait", "3600") as ran:
        ran.until("begins")
        ran.signal(signal.SIGTERM)
        assert ran.wait() == 130, ran.said
    assert "all there will be" not in ran.said


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_the_threads_are_listed(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython holds a lock then, for which the end of a tensor can wait forever."""
    collected, frames = list[bool](), sys._current_frames
    monkeypatch.setattr(sys, "_current_frames", lambda: collected.append(gc.isenabled()) or frames())
    if not enabled:
        gc.disable()
    try:
        assert private.awaited_nodes() == 0
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert collected == [False]
