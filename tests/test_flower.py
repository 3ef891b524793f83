"""FlowerNetwork, the client's half, memories on disk, and the Grid in this process."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

import world
from fedshare.errors import RunHalted, UserError
from fedshare.network import Purpose
from fedshare.rounds import Schedule, run_server
from fedshare.state import digests
from fedshare.transport.flower import private
from fedshare.transport.flower.apps import client_app
from fedshare.transport.flower.inprocess import InProcessGrid
from fedshare.transport.flower.load import App, serve
from fedshare.transport.flower.memory import Memory
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Terms
from fedshare.transport.flower.private import NodeInfo

RUN = bytes(8)


def network(folder: Path, name: str = "local", text: str = "config", nodes: int = world.CLIENTS, **more: object):  # type: ignore[no-untyped-def]
    """A network in this process, whose clients were built from `text`, and the server's population."""
    app = client_app(lambda run_config, node_config: (text, world.build(name)))
    grid = InProcessGrid(app, nodes, {}, {"state-dir": str(folder)})
    here = world.build(name)
    return FlowerNetwork(grid, Terms.of("config", here), RUN, 5, world.CLIENTS, **more), here  # type: ignore[arg-type]


def test_a_config_or_a_model_that_differs_is_refused_with_both_digests(tmp_path: Path) -> None:
    other, _ = network(tmp_path, text="another config")
    with pytest.raises(UserError, match=r"1 clients.*its config has the digest [0-9a-f]{12}, the server's"):
        other.client_ids()
    assert len(other.refused) == world.CLIENTS
    mine, _ = network(tmp_path)
    mine._joining._terms = Terms(mine._terms.config, bytes(32))
    with pytest.raises(UserError, match=r"its initial model has the digest [0-9a-f]{12}, the server's 000000000000"):
        mine.client_ids()


def test_a_node_cannot_take_the_place_of_another(tmp_path: Path) -> None:
    said: list[str] = []
    net, _ = network(tmp_path, say=said.append)
    net._grid._contexts[3 + 2].node_config["partition-id"] = 0  # type: ignore[attr-defined]
    assert net.client_ids() == [0, 1, 2, 4]
    assert said == [
        "client 3 does not take part, and is asked again in 15 s: "
        "it says that it is client 0, but it is registered as client 3"
    ]


def test_a_node_is_named_by_its_client_or_by_its_number_and_a_name_that_shows(tmp_path: Path) -> None:
    """As on Flower's fleet, where an operator names nodes, or does not."""
    names = ["", "edge box\u3164\u202e", "client 3", "client-03", "client-4"]

    class Named(InProcessGrid):
        def get_nodes(self) -> Iterable[NodeInfo]:
            return [private.named(node, name) for node, name in zip(self._present(), names, strict=True)]

    said, refused = list[str](), list[int | None]()
    app = client_app(lambda *_: ("another config", world.build("local")))
    grid = Named(app, world.CLIENTS, {}, {"state-dir": str(tmp_path)})
    net = FlowerNetwork(
        *(grid, Terms.of("config", world.build("local")), RUN, 5, world.CLIENTS),
        say=said.append,
        refusal=lambda reason, client: refused.append(client),
    )
    called = ["node 2", r"node 3 ('edge box\\u3164\\u202e')", "node 4 ('client 3')", "node 5 ('client-03')", "client 4"]
    with pytest.raises(UserError) as ended:
        net.client_ids()
    assert [line.partition(" does not take part")[0] for line in said] == called
    assert all(f"; {name}: its config" in str(ended.value) for name in called)
    assert refused == [None, None, None, None, 4]


def test_every_message_is_held_to_the_terms(tmp_path: Path) -> None:
    net, here = network(tmp_path)
    net.client_ids()
    net._terms = Terms(bytes(32), bytes(32))  # as if the client's process had been replaced since
    download = here.strategy.download({}, 0, Purpose.TRAIN)
    assert download is not None
    exchange = net.exchange(Purpose.TRAIN, 1, {0: download})
    assert exchange.answers == {}
    assert exchange.absent == {0: "its config or its initial model is not the server's"}


def test_too_few_nodes_are_said_at_once_where_nobody_else_can_come(tmp_path: Path) -> None:
    net, _ = network(tmp_path, nodes=2, clients=3)
    with pytest.raises(UserError, match="3 clients are waited for, and 2 take part"):
        net.client_ids()


def test_a_round_that_is_run_again_starts_from_the_memory_of_its_time(tmp_path: Path) -> None:
    """As when a server is killed after its clients have gone on: what they learnt since does not count."""
    schedule = Schedule(rounds=6, seed=0, max_examples=100, evaluate_every=0)

    def links(net: FlowerNetwork, start: int, digest: str) -> list:  # type: ignore[type-arg]
        state = here.strategy.init(here.scratch.initial, here.clients)  # local's server remembers nothing
        return [done.link for done in run_server(here.strategy, net, state, schedule, start, digest)]

    net, here = network(tmp_path / "a")
    whole = links(net, 0, "")
    again, here = network(tmp_path / "a")  # new processes, the same disk, now at round 6
    again.memories.recall({id: {"round": 2} for id in range(world.CLIENTS)}, 2)
    assert links(again, 2, whole[1].digest) == whole[2:]


def test_memory_versions(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "client-0")
    states = {round: {"a": torch.full((3,), float(round)), "log": [round]} for round in (1, 2, 3, 4)}
    assert memory.recall(0, 0) == {}
    for round, state in states.items():
        memory.save(round, state)
    fresh = Memory(tmp_path / "client-0")
    assert digests(fresh.recall(3, 2)) == digests(states[3]), "and round 4 never was"
    assert sorted(path.name[:12] for path in fresh.folder.iterdir()) == ["round-000002", "round-000003"]
    spoilt = fresh.recall(3, 2)
    spoilt["a"].zero_()
    assert digests(fresh.recall(3, 2)) == digests(states[3]), "a client that raises half-way spoils a copy"
    with pytest.raises(UserError, match=r"the memory of round 7 is not in .*client-0 \(rounds there: 2, 3\)"):
        Memory(tmp_path / "client-0").recall(7, 2)
    (path,) = fresh.folder.glob("round-000003-*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"round-000003-\w+\.safetensors is damaged: its SHA-256 is another"):
        Memory(tmp_path / "client-0").recall(3, 2)
    assert Memory(tmp_path / "client-0").recall(0, 0) == {}
    assert list(fresh.folder.iterdir()) == [], "the server counts on nothing"


def echo(fails: Iterable[int] = ()) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        context.state["times"] = ConfigRecord({"n": int(context.state.get("times", {"n": 0})["n"]) + 1})  # type: ignore[union-attr, call-overload]
        if context.node_config["partition-id"] in fails:
            raise ValueError("no\nmore")
        return Message(RecordDict({"times": context.state["times"]}), reply_to=message)

    return app


def asking(times: int) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        for number in range(1, times + 1):
            nodes = list(grid.get_node_ids())
            messages = [Message(RecordDict({"a": ArrayRecord()}), node, "train") for node in nodes]
            replies = list(grid.send_and_receive(messages))
            assert sorted(reply.metadata.src_node_id for reply in replies) == sorted(nodes)
            for reply in replies:
                if reply.has_content():
                    assert reply.content["times"]["n"] == number, "a context lives as long as the run"  # type: ignore[index]

    return app


@pytest.mark.parametrize(("answer", "kind"), [(None, "NoneType"), ({"a": 1}, "dict"), (RecordDict(), "RecordDict")])
def test_a_client_that_answers_with_no_message_has_failed(answer: object, kind: str) -> None:
    app = ClientApp()
    app.train()(lambda message, context: answer)  # type: ignore[arg-type, return-value]
    with pytest.raises(RunHalted, match=f"client 0: answered with a {kind}, not with a Message"):
        serve(asking(1), InProcessGrid(app, 2, {}), {})


def test_an_app_in_process_keeps_its_contexts() -> None:
    serve(asking(3), InProcessGrid(echo(), 4, {}), {})


def test_a_client_that_raises_is_told_of_and_if_all_do_the_run_halts(capsys: pytest.CaptureFixture[str]) -> None:
    serve(asking(2), InProcessGrid(echo(fails=[2]), 4, {}), {})
    expected = "warning: 1 of 4 clients failed the last time they were asked; client 2: raised ValueError: no\n"
    assert capsys.readouterr().err.endswith(expected)
    with pytest.raises(
        RunHalted, match="4 of 4 clients failed the last time they were asked; client 0: raised ValueErr"
    ):
        serve(asking(2), InProcessGrid(echo(fails=range(4)), 4, {}), {})


@pytest.mark.parametrize(
    ("pyproject", "line"),
    [
        (None, "not a Flower app: it has no pyproject.toml"),
        ("[tool.flwr.app.components]\nserverapp = 'a:b'\n", "not a Flower app: no 'clientapp' in [tool.flwr.app.comp"),
        ("[tool", "Expected ']' at the end of a table declaration"),
        ("[tool.flwr.app]\ncomponents = 'a:b'\n", "not a Flower app: [tool.flwr.app.components] is not a table"),
    ],
)
def test_what_is_no_flower_app(pyproject: str | None, line: str, tmp_path: Path) -> None:
    if pyproject is not None:
        (tmp_path / "pyproject.toml").write_text(pyproject)
    with pytest.raises(UserError) as error:
        App.at(tmp_path)
    assert line in str(error.value)


def test_an_app_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.flwr.app.components]\nserverapp = 'nowhere_at_all:app'\nclientapp = 'json:loads'\n"
    )
    with pytest.raises(UserError, match="serverapp = 'nowhere_at_all:app': cannot be loaded: No module named"):
        App.at(tmp_path).server()
    with pytest.raises(UserError, match="clientapp is a function, not a ClientApp"):
        App.at(tmp_path).client()


class Trickling(InProcessGrid):
    """Replies come one at a time, each whenever somebody looks, as from a network."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.late: list[tuple[str, Message]] = []

    def _answered(self, id: str, reply: Message) -> None:
        self.late.append((id, reply))

    def wait(self, timeout: float) -> None:
        if not self.late and timeout:
            raise AssertionError("it waits for a reply that is here")
        if self.late:
            super()._answered(*self.late.pop(0))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.wait(0)
        return super().pull_messages(message_ids)


def test_a_reply_that_comes_while_another_is_taken_is_not_waited_for() -> None:
    serve(asking(3), Trickling(echo(), 4, {}), {})
