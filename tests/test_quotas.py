"""What an answer may hold: no more than fits what is expected of it, whoever sends it, and none of it writes lines."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unicodedata import category, name

import grpc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")

from flwr.app import Error, RecordDict
from test_stream import CHUNK, Guest, ask, chunk, converse, hello, receive, serving, until_present, wait_until

import world
from fedshare._proto.payload_pb2 import Attendance, Leaf, Metric, Reply
from fedshare._proto.payload_pb2 import Tensor as Entry
from fedshare.errors import NAME, RunHalted, brief, printable
from fedshare.forms import wire
from fedshare.forms.wire import Limits
from fedshare.network import Exchange, Heard, Purpose, Quotas
from fedshare.payload import Payload, Quota
from fedshare.report.attendance import attendance_table
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.state import digests
from fedshare.transport.flower.envelope import seal, unseal
from fedshare.transport.flower.grid import reply
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Terms
from fedshare.transport.flower.records import wrap
from fedshare.transport.flower.stream import StreamGrid
from fedshare.transport.stream.server import StreamServer
from fedshare.transport.stream.service import METHOD
from world import PATIENCE

FALSE_LINE = "host\n2026-11-30 12:00:00 round 9 is done\x1b[2J\u202e" + 200 * "x"


# On the stream.


def test_an_answer_beyond_what_its_message_allows_is_refused_when_it_is_announced() -> None:
    with serving(grace=60.0) as server:
        free = threading.Event()
        first = chunk(message=1, size=10_001, data=b"1")  # and no byte more: nobody waits for the rest

        def frames() -> Iterator[bytes]:
            yield hello()
            free.wait(PATIENCE)
            yield first
            threading.Event().wait(PATIENCE)

        with grpc.insecure_channel(server.address) as channel:
            call = channel.stream_stream(METHOD)(frames(), timeout=PATIENCE)
            until_present(server, 0)
            ticket = server.send(0, [b"x"], limit=10_000)
            free.set()
            (answer,) = receive(server, 1)
            assert (answer.ticket, answer.body) == (ticket, None)
            assert answer.reason == "it sent a message of 10001 bytes; at most 10000 are taken"
            call.cancel()


def test_each_message_has_a_limit_of_its_own() -> None:
    with serving(grace=60.0, limit=5) as server:
        Guest(server.address, answer=lambda body: [bytes(int(body))])
        until_present(server, 0)
        for size in (100, 3 * CHUNK, 7):
            server.send(0, [str(size).encode()], limit=size)
            assert [len(answer.body or b"") for answer in receive(server, 1)] == [size]
        assert ask_fails(server, b"6") == "it sent a message of 6 bytes; at most 5 are taken"


def ask_fails(server: StreamServer, body: bytes) -> str:
    server.send(0, [body])
    (answer,) = receive(server, 1)
    assert answer.body is None
    return answer.reason


# In a run, over sockets.

Answer = Callable[[], RecordDict | Error | bytes]


class Liar:
    """A client that says who it is, and then answers each message with what a test gives it."""

    def __init__(self, address: str, id: int = 0, **attendance: Any) -> None:
        self.answer: Answer = lambda: RecordDict()
        self.guest = Guest(address, id, answer=self._answer)
        self._attendance = Attendance(**{"client": id, "examples": 8, **attendance})

    def _answer(self, body: bytearray) -> list[Any]:
        letter = unseal(body)
        said = wrap(self._attendance.SerializeToString()) if letter.type == "query.attend" else self.answer()
        if isinstance(said, bytes):
            return [said]
        content, error = (None, said) if isinstance(said, Error) else (said, None)
        return seal(reply(2, "1", letter.type, letter.group, content, error))


@contextmanager
def asked(
    everyone: int = 1, say: Callable[[str], None] = print
) -> Iterator[tuple[FlowerNetwork, StreamServer, Callable[..., str]]]:
    """A network of one client that lies; and why what it answers is not taken, "" where it is."""
    here = world.build("fedavg")
    strategy = here.strategy
    state = strategy.init(here.scratch.initial, here.clients)
    with serving(clients=everyone, grace=60.0) as server:
        network = FlowerNetwork(
            *(StreamGrid(server), Terms.of("config", here), bytes(8), PATIENCE, everyone, 1, PATIENCE),
            say=say,
            parts=len(here.scratch.shapes),
        )
        liar = Liar(server.address)
        assert network.client_ids() == [0]
        download = strategy.download(state, 0, Purpose.TRAIN)
        assert download is not None

        def why(answer: Answer, quota: Quota | None = None) -> str:
            liar.answer = answer
            quotas = lambda client: quota or Quota.of(strategy.expects(state, client))  # noqa: E731
            exchange = network.exchange(Purpose.TRAIN, 1, {0: download}, quotas)
            return "" if exchange.answers else exchange.absent[0]

        yield network, server, why


def honest() -> tuple[Reply, bytes]:
    here = world.build("fedavg")
    contents, data = wire.pack(Payload({"params": here.scratch.initial}, {"examples": 8.0}))
    return Reply(upload=contents), bytes(data)


def altered(change: Callable[[Reply], object]) -> RecordDict:
    answer, data = honest()
    change(answer)
    return wrap(answer.SerializeToString(), data)


def tensors(count: int) -> list[Entry]:
    return [Entry(group="params", name=f"w{n}", dtype=1, shape=[0]) for n in range(count)]


EXCESS: dict[str, tuple[Answer, str]] = {
    "bytes": (lambda: wrap(b"x", bytes(1_200_000)), "it sent a message of 12"),
    "tensors": (
        lambda: altered(lambda answer: answer.upload.layout.extend(tensors(500))),
        "it holds 509 tensors; at most 100 are taken",
    ),
    "empty groups": (
        lambda: altered(lambda answer: answer.upload.empty_groups.extend(map(str, range(500)))),
        "it holds 500 empty groups; at most 100 are taken",
    ),
    "metrics": (
        lambda: altered(lambda answer: answer.upload.metrics.extend(Metric(name=f"m{n}") for n in range(500))),
        "it holds 501 metrics; at most 100 are taken",
    ),
    "digests": (
        lambda: altered(lambda a: a.memory.extend(Leaf(path=f"p{n}", sha256=bytes(32)) for n in range(5000))),
        "it holds 5000 digests of its memory; at most",
    ),
    "a name": (
        lambda: altered(lambda answer: setattr(answer.upload.layout[0], "name", "n" * 1000)),
        "a name in it has 1000 characters; at most 164 are taken",
    ),
    "a metric's name": (
        lambda: altered(lambda answer: setattr(answer.upload.metrics[0], "name", "n" * 81)),
        "a metric in it is named 'nnn",
    ),
    "a metric that writes lines": (
        lambda: altered(lambda answer: setattr(answer.upload.metrics[0], "name", FALSE_LINE)),
        r"a metric in it is named 'host\n2026-11-30",
    ),
}


def test_an_honest_answer_is_taken() -> None:
    with asked() as (_, _, why):
        assert why(lambda: altered(lambda answer: None)) == ""
        twice, data = honest()
        twice.upload.layout.add(group="more", name="w", dtype=1, shape=[len(data) // 4])
        assert why(lambda: wrap(twice.SerializeToString(), 2 * data)) == ""  # whether it fits is for others to say


@pytest.mark.parametrize(("answer", "reason"), EXCESS.values(), ids=EXCESS)
def test_an_answer_with_more_than_fits_what_is_expected_is_dropped_in_one_line(answer: Answer, reason: str) -> None:
    with asked() as (_, _, why):
        found = why(answer)
        assert reason in found
        assert found.isprintable()
        assert len(found) <= 200


def test_what_is_no_tensors_is_small_however_large_tensors_may_be() -> None:
    large = Quota(20_000_000, 6, 20)
    with asked() as (_, _, why):
        head, letters = bytes([255, 255, 31, 0]), bytes(2_100_000)  # which, read, would take many times as much
        assert "its envelope wants 2097155 bytes; at most 105" in why(lambda: head + letters, large)
        assert why(lambda: wrap(b"\x1a\x00" * 600_000, bytes(5000)), large).startswith("sent a message that cannot be")


def test_who_says_that_it_attends_is_brief() -> None:
    with serving(clients=1, grace=60.0) as server:
        here = world.build("fedavg")
        network = FlowerNetwork(StreamGrid(server), Terms.of("config", here), bytes(8), PATIENCE, 1, 1, 0.0)
        guest = Liar(server.address, host="h" * 2_000_000).guest
        until_present(server, 0)
        network._joining.here()
        assert "sent a message of 2000" in str(guest.end())
        with pytest.raises(RunHalted, match="waited 0 s for 1 clients; have none"):
            network.client_ids()


def test_who_is_cut_off_as_it_says_that_it_attends_is_refused_by_its_number() -> None:
    refused, said = list[tuple[str, int | None]](), list[str]()
    with serving(clients=1, grace=60.0) as server:
        network = FlowerNetwork(
            *(StreamGrid(server), Terms.of("config", world.build("fedavg")), bytes(8), PATIENCE, 1, 1, 0.0),
            say=said.append,
            refusal=lambda reason, client: refused.append((reason, client)),
        )
        guest = Liar(server.address, host="h" * 2_000_000).guest
        until_present(server, 0)
        network._joining.here()
        guest.end()
        wait_until(lambda: not server.present(), "it is gone")
        network._joining.here()
    ((reason, client),) = refused
    assert reason.startswith("it sent a message of 2000")
    assert client == 0
    assert said[0].startswith("client 0 does not take part")


# What is expected.


class Counting(Simulation):
    """Holds each answer to what was expected of it, as it would be on a wire."""

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        assert quotas is not None
        exchange = super().exchange(purpose, round, downloads, quotas, heard)
        parts = len(self.population.scratch.shapes)
        for client, answer in exchange.answers.items():
            limits = Limits.of(quotas(client), 2000, parts)
            contents, data = wire.pack(answer)
            wire.unpack(contents, data, limits)
            leaves = digests(self.memories.states.get(client, {}))
            head = Reply(upload=contents, memory=[Leaf(path=path, sha256=bytes(32)) for path in leaves])
            assert len(leaves) <= limits.leaves
            assert head.ByteSize() <= limits.head
            assert head.ByteSize() + len(data) <= limits.body
        self.held = len(exchange.answers)
        return exchange


@pytest.mark.parametrize("name", world.STRATEGIES)
def test_no_honest_answer_of_any_strategy_is_beyond_what_is_expected(name: str) -> None:
    network = Counting(partial(world.build, name))
    state = world.begin(network.population)
    rounds = run_server(network.population.strategy, network, state, Schedule(rounds=3, seed=0, max_examples=100))
    assert len(list(rounds)) == 3
    assert network.held == world.CLIENTS


def test_limits_follow_from_what_is_expected() -> None:
    quota = Quota.of({"params": {"w": torch.zeros(1000), "bias": torch.zeros(10, dtype=torch.uint8)}})
    assert quota == Quota(4010, 2, 6)
    limits = Limits.of(quota, slack=1 << 20)
    assert 2 * 4010 + (1 << 20) <= limits.body <= 2 * 4010 + (1 << 20) + 1000
    assert limits.tensors < 100


# What others have written, where it is shown.


def test_a_host_cannot_write_lines_of_the_log() -> None:
    said: list[str] = []
    with asked(2, said.append) as (network, server, _):
        Liar(server.address, 1, host=FALSE_LINE, device=FALSE_LINE)
        until_present(server, 0, 1)
        wait_until(lambda: network.client_ids() == [0, 1], "both take part")
        (line,) = [line for line in said if not line.startswith("waiting for")]
        shown = r"host\n2026-11-30 12:00:00 round 9 is done\x1b[2J\u202exxxx"
        assert line.startswith(f"client 1 takes part: {shown}")
        assert line.isprintable()
        assert len(line) < 2 * NAME + 60
        table = attendance_table([*network.attendance.values(), Attendance(client=2, host=FALSE_LINE)])
        assert len(table.splitlines()) == 4
        assert all(row.isprintable() and len(row) < 200 for row in table.splitlines())


def test_a_client_s_error_cannot_write_lines_of_the_log() -> None:
    with asked() as (network, _, why):
        found = why(lambda: Error(2, FALSE_LINE))
        assert found.startswith(r"host\n2026-11-30 12:00:00 round 9 is done\x1b[2J\u202exxx")
        assert found.isprintable()
        assert len(found) <= 200
        grid = network._grid
        assert all(reason.isprintable() for reason in grid.failures.values())  # type: ignore[attr-defined]


def test_a_version_cannot_write_lines_of_the_log() -> None:
    said: list[str] = []
    with serving(clients=1, say=said.append) as server:
        (down,), _, _ = converse(server.address, hello(version=FALSE_LINE, config=FALSE_LINE))
        (line,) = said
        assert line == down.refusal.reason
        assert line.startswith(r"client 0 was refused: it runs fedshare host\n2026-11-30 12:00:00 round 9")
        assert line.isprintable()


def test_a_server_cannot_write_lines_of_its_clients_logs() -> None:
    with serving() as server:
        guest = Guest(server.address)
        until_present(server, 0)
        assert ask(server, 0, b"x") == b"re x"
        server.close(FALSE_LINE)
        assert str(guest.end()).startswith(r"the run halted: host\n2026-11-30")
        assert str(guest.end()).isprintable()


def test_a_name_in_an_upload_cannot_write_lines_of_the_log() -> None:
    here = world.build("fedavg")

    def wrong(upload: Payload) -> Payload:
        more = {"w\n2026-11-30 all is well": torch.zeros(1)}
        return Payload({"params": upload.tensors["params"] | more}, upload.metrics)

    network = world.Altered(Simulation(lambda: here), {1: wrong})
    state = here.strategy.init(here.scratch.initial, here.clients)
    (done,) = run_server(here.strategy, network, state, Schedule(rounds=1, seed=0, max_examples=100))
    assert done.row["dropped"]["1"].isprintable()
    assert r"has unknown w\n2026-11-30 all is well" in done.row["dropped"]["1"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, and \u00e9", "plain, and \u00e9"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("a\u2028\ud800\U000e0001", r"a\u2028\ud800\U000e0001"),
        ("a\u00a0b\u3000c", r"a\xa0b\u3000c"),  # other spaces
        ("a\u200b\u202e\u2066\u00adb", r"a\u200b\u202e\u2066\xadb"),  # no width, turned round, a soft hyphen
        ("\u115f\u3164\uffa0\u2800", r"\u115f\u3164\uffa0\u2800"),  # fillers and a blank
        ("\u2764\ufe0f", "\u2764" + r"\ufe0f"),  # a variation selector
        ("host\u0301-a\u20dd", r"host\u0301-a\u20dd"),  # accents that are no letters of their own
        ("x\u064e \u0e31", r"x\u064e \u0e31"),  # marks of another script than the letter's, or on none
        ("\u061c\u064e", r"\u061c\u064e"),  # or on what is not shown
        ("\u0e01" + 9 * "\u0e49", "\u0e01" + 4 * "\u0e49" + 5 * r"\u0e49"),  # a tower of marks
    ],
)
def test_what_does_not_show_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == brief(text) == shown
    assert len(brief(1000 * text, 80)) == 80


@pytest.mark.parametrize(
    "text",
    [
        "Zürich 7, façade, Łódź, Việt Nam, Αθήνα, Москва, Київ",
        "東京 サーバー, 서울 서버, 北京节点, თბილისი, Երևան",
        "हिन्दी, தமிழ், ไทยน้ำ, ខ្មែរ, မြန်မာ, བོད་ཡིག",
        "عَرَبِيّ, עִבְרִית, አማርኛ",
        "gpu 0 · 10⁶ €, “naïve”, ½",
    ],
)
def test_writing_of_any_script_stays_readable(text: str) -> None:
    assert printable(text) == text


@given(st.text(max_size=60) | st.text(st.characters(categories=["Mn", "Mc", "Me", "Cf", "Zs", "Lo"]), max_size=30))
def test_whatever_is_shown_shows_and_is_shown_once(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert not {category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert all(char == " " for char in shown if category(char) == "Zs")
    assert not any(name(char, "").startswith(("COMBINING", "VARIATION", "HANGUL FILLER")) for char in shown)
    assert len(brief(text, 20)) <= 20
    if text.isascii() and text.isprintable():
        assert shown == text
