"""Clients that keep a run waiting, over real sockets: silent ones, late ones, and those that send a byte now and then.

No test waits for a deadline but the last: the network's clock leaps once all the others have answered.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from test_deployment import SMALL
from test_stream import HEARTBEAT, Guest, ask, port, receive, serving, until_present, wait_until

import world
from deployed import Deployment, certificates
from fedshare.errors import RunHalted, UserError
from fedshare.experiments.config.compose import resolved
from fedshare.network import LATE, Heard, Purpose
from fedshare.report.console import Progress
from fedshare.rounds import Round, Schedule, run_server
from fedshare.runs import RunFolder
from fedshare.runs.verify import late as _late
from fedshare.transport.flower import network as module
from fedshare.transport.flower.apps import client_app
from fedshare.transport.flower.inprocess import InProcessGrid
from fedshare.transport.flower.network import FlowerNetwork
from fedshare.transport.flower.participant import Terms
from fedshare.transport.flower.stream import StreamGrid, live
from fedshare.transport.pace import REMEMBERED, Deadline, Pace
from fedshare.transport.stream.client import StreamClient
from fedshare.transport.suspension import LONGEST, Suspensions
from proxy import UP, Proxy
from world import PATIENCE

SLOW = 3  # a client, of those that there are
TIMEOUT = 3600.0


# Who is suspended, and for how long.


def asked(misses: Callable[[int], bool], rounds: int, after: int | None = 2) -> list[int]:
    """The rounds in which a client is asked that misses some."""
    suspensions, found = Suspensions(after), []
    for round in range(1, rounds + 1):
        if 7 not in suspensions.begin(round):
            found.append(round)
            suspensions.heard([] if misses(round) else [7], {7: "no answer"} if misses(round) else {})
    return found


def test_the_pauses_grow_and_are_capped() -> None:
    found = asked(lambda round: True, 200)
    assert found[:7] == [1, 2, 4, 7, 12, 21, 38]
    pauses = [after - before - 1 for before, after in pairwise(found)]
    assert pauses == [0, 1, 2, 4, 8, *[LONGEST] * (len(pauses) - 5)]
    assert len(pauses) > 10


def test_nobody_is_suspended_without_a_number_of_misses() -> None:
    assert asked(lambda round: True, 50, after=None) == list(range(1, 51))


def test_a_round_in_time_ends_all_that_is_held_against_a_client() -> None:
    assert asked(lambda round: round != 7, 16) == [1, 2, 4, 7, 8, 9, 11, 14]
    assert asked(lambda round: round % 2 == 1, 50) == list(range(1, 51)), "never two in a row"


def test_a_round_is_missed_if_any_of_its_messages_was() -> None:
    suspensions = Suspensions(2)
    for round in (1, 2):
        assert suspensions.begin(round) == {}
        suspensions.heard([0, 1], {})
        suspensions.heard([0], {1: "no answer in 9 s"})
    assert suspensions.begin(3) == {1: "missed 2 rounds in a row (no answer in 9 s); asked again in round 4"}
    assert suspensions.begin(3).keys() == {1}, "asked twice, it says the same"


@given(st.lists(st.dictionaries(st.integers(0, 3), st.booleans()), max_size=40), st.integers(1, 4))
def test_what_is_held_against_clients_outlives_a_restart(rounds: list[dict[int, bool]], after: int) -> None:
    lasting, restarted = Suspensions(after), Suspensions(after)
    for round, heard in enumerate(rounds, 1):
        suspended = lasting.begin(round)
        assert restarted.begin(round) == suspended
        missed = {client: "late" for client, late in heard.items() if late and client not in suspended}
        for one in (lasting, restarted):
            one.heard(heard.keys() - missed.keys() - suspended.keys(), missed)
        restarted.begin(round + 1)
        memories = {client: {"round": 5} | held for client, held in restarted.remember().items()}
        restarted = Suspensions(after)
        restarted.recall(memories | {9: {"round": 1}})
    assert lasting.begin(len(rounds) + 1) == restarted.begin(len(rounds) + 1)


# How long is waited.


def test_a_deadline_is_the_whole_time_until_somebody_has_answered_and_then_follows_the_slowest() -> None:
    deadline = Deadline(Pace(deadline_factor=5, deadline_floor=120), TIMEOUT, grace=30)
    assert deadline.seconds() == TIMEOUT
    deadline.saw(2.0)
    assert deadline.seconds() == 150, "the floor, and --grace"
    deadline.saw(100.0)
    assert deadline.seconds() == 500
    for _ in range(REMEMBERED - 1):
        deadline.saw(40.0)
    assert deadline.seconds() == 500, "of the last rounds the slowest"
    deadline.saw(40.0)
    assert deadline.seconds() == 200
    deadline.saw(3000.0)
    assert deadline.seconds() == TIMEOUT, "never more than timeout"


def test_a_floor_above_the_timeout_is_the_timeout() -> None:
    deadline = Deadline(Pace(deadline_factor=5, deadline_floor=120), 20.0, grace=30)
    deadline.saw(0.1)
    assert deadline.seconds() == 20


@given(st.lists(st.floats(0, 1e6), max_size=30), st.floats(1, 100), st.floats(0, 1e4), st.floats(1, 86400))
def test_a_deadline_is_never_beyond_the_timeout_nor_shorter_than_the_slowest_answer(
    slowest: list[float], factor: float, floor: float, most: float
) -> None:
    deadline = Deadline(Pace(deadline_factor=factor, deadline_floor=floor), most)
    for seconds in slowest:
        deadline.saw(seconds)
    assert min(most, floor) <= deadline.seconds() <= most
    last = max(slowest[-REMEMBERED:], default=0.0)
    assert deadline.seconds() >= min(most, last) - 0.1


@pytest.mark.parametrize(
    ("quorum", "asked", "enough"),
    [(1.0, 7, 7), (0.8, 5, 4), (0.8, 3, 3), (0.07, 100, 7), (0.5, 3, 2), (1e-12, 9, 1), (0.3, 10, 3)],
)
def test_a_quorum_is_rounded_up(quorum: float, asked: int, enough: int) -> None:
    assert Pace(quorum=quorum).enough(asked) == enough


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("quorum=0", "quorum=0.0: must be above 0 and at most 1"),
        ("quorum=1.5", "quorum=1.5: must be above 0 and at most 1"),
        ("quorum=nan", "quorum=nan: must be above 0 and at most 1"),
        ("suspend_after=0", "suspend_after=0: must be at least 1"),
        ("deadline_factor=0.5", "deadline_factor=0.5: must be at least 1"),
        ("deadline_floor=-1", "deadline_floor=-1.0: must be from 0 to 86400"),
    ],
)
def test_what_cannot_be_meant_is_refused(override: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        resolved([*SMALL, override])
    assert str(raised.value) == said


# Over sockets.


class Clients:
    """A server in this process, and clients of it in threads; one may be held back, or be behind a proxy."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, pace: Pace, grace: float) -> None:
        self.count, self.folder, self.pace, self.leap = count, folder, pace, TIMEOUT
        self.free = {client: threading.Event() for client in range(count)}
        self.holds: Callable[[int, str, int], bool] = lambda client, purpose, round: False
        self.asked: Counter[tuple[int, str]] = Counter()
        self.late = 0  # how many of those asked are never heard in time
        self.proxies: dict[int, Proxy] = {}
        self.log: list[str] = []
        self.said: dict[int, list[str]] = {client: [] for client in range(count)}
        self._offset, self._grace, self.ripe = 0.0, grace, False
        self._one = threading.Lock()  # torch's generator is all threads'
        self._streams, self._threads = list[StreamClient](), list[threading.Thread]()
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self._offset, sleep=time.sleep)
        monkeypatch.setattr(module, "time", clock)

    def __enter__(self) -> "Clients":
        self._stack = ExitStack()
        self.server = self._stack.enter_context(serving(clients=self.count, grace=self._grace))
        self._stack.callback(self._end)
        for client in range(self.count):
            proxy = self.proxies[client] = self._stack.enter_context(Proxy(port(self.server)))
            thread = threading.Thread(target=self._live, args=(client, proxy.address), daemon=True)
            self._threads.append(thread)
            thread.start()
        wait_until(lambda: len(self.server.present()) == self.count, "all are there")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        """None of them seeks its server any longer: it would find another test's at the same port."""
        for event in self.free.values():
            event.set()
        for proxy in self.proxies.values():
            proxy.flow()
        for stream in self._streams:
            stream.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def network(self) -> FlowerNetwork:
        self.made = world.build("fedavg", parts=world.shares(self.count))
        network = FlowerNetwork(
            *(StreamGrid(self.server), Terms.of("config", self.made), bytes(8), TIMEOUT, self.count, self.count, 60.0),
            say=self.log.append,
            pace=self.pace,
        )
        network._wait = partial(self._wait, network._wait)
        return network

    def rounds(
        self, rounds: int, network: FlowerNetwork | None = None, heard: Heard | None = None, **schedule: Any
    ) -> Iterator[Round]:
        network = network or self.network()
        plan = Schedule(rounds=rounds, seed=0, max_examples=1000, clients=self.count, **schedule)
        return run_server(self.made.strategy, network, world.begin(self.made), plan, heard=heard or self.heard)

    def heard(self, purpose: Purpose, round: int, number: int, asked: int) -> None:
        # Anew each time: who was counted as late may yet answer, and the next exchange must not begin at its end.
        self.ripe = bool(self.late) and number == asked - self.late and asked == self.count

    def _wait(self, wait: Callable[[float], None], seconds: float) -> None:
        if self.ripe:  # all that will answer have, and been read
            self.ripe, self._offset = False, self._offset + self.leap
        else:
            wait(seconds)

    def _live(self, client: int, address: str) -> None:
        app = client_app(lambda *_: ("config", world.build("fedavg", parts=world.shares(self.count))))

        def held(message: Message, context: Context) -> Message:
            kind, group = message.metadata.message_type, message.metadata.group_id
            self.asked[client, kind] += 1
            if group and self.holds(client, kind, int(group)):
                self.free[client].wait(PATIENCE)
            with self._one:
                answer: Message = app(message, context)
            return answer

        stream = StreamClient(
            address, client, None, "1", patience=PATIENCE, heartbeat=HEARTBEAT, say=self.said[client].append
        )
        self._streams.append(stream)
        load: Callable[[Any], ClientApp] = lambda _: held  # type: ignore[assignment,return-value]  # noqa: E731
        live(stream, load, {"state-dir": str(self.folder / str(client))})


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Clients]]:
    with ExitStack() as stack:

        def make(count: int = 4, grace: float = PATIENCE, **pace: Any) -> Clients:
            return stack.enter_context(Clients(tmp_path, monkeypatch, count, Pace(**pace), grace))

        yield make


def in_rounds(done: list[Round], key: str, client: int = SLOW) -> dict[int, str]:
    """What the rows say of a client."""
    return {one.number: one.row[key][str(client)] for one in done if str(client) in one.row.get(key, {})}


def test_who_sends_a_byte_now_and_then_is_left_out_and_changes_nothing(
    clients: Callable[..., Clients], tmp_path: Path
) -> None:
    here = clients(suspend_after=2)
    network, here.late = here.network(), 1
    assert network.client_ids() == [0, 1, 2, SLOW]
    here.proxies[SLOW].dribble_after(300)  # in the midst of its first upload
    done = list(here.rounds(12, network))
    silent = f"no answer in {TIMEOUT:g} s"
    assert in_rounds(done, "dropped") == dict.fromkeys((1, 2, 4, 7, 12), silent)
    again = {3: 4, 5: 7, 6: 7, 8: 12, 9: 12, 10: 12, 11: 12}
    suspended = in_rounds(done, "suspended")
    assert {round: int(why.rpartition(" ")[2]) for round, why in suspended.items()} == again
    assert suspended[3] == f"missed 2 rounds in a row ({silent}); asked again in round 4"
    untested = in_rounds(done, "untested")
    assert untested.pop(1, silent) == silent  # a short answer may dribble through while the others are still at it
    assert untested == {round: "suspended" if round in again else silent for round in range(2, 13)}
    assert all(one.row["absent"] == [] and one.row["clients"] == [0, 1, 2] for one in done)
    assert sum("client 3 is suspended" in line for line in here.log) == 3, here.log
    begun = here.proxies[SLOW].passed[UP]
    assert begun > 300, "its upload had begun"

    # The others' run is the one that they have without it.
    grid = InProcessGrid(
        client_app(lambda *_: ("config", world.build("fedavg", parts=world.shares(4)))),
        3,
        {},
        {"state-dir": str(tmp_path / "alone")},
    )
    alone = FlowerNetwork(grid, Terms.of("config", here.made), bytes(8), TIMEOUT, 4, 3)
    assert [one.link for one in here.rounds(12, alone)] == [one.link for one in done]


def test_who_answers_again_takes_part_again(clients: Callable[..., Clients]) -> None:
    here = clients(suspend_after=2)
    here.late, here.holds = 1, lambda client, kind, round: client == SLOW and round < 4
    done = []
    for one in here.rounds(6):
        done.append(one)
        if one.number == 3:  # it is suspended, and will be asked again
            here.late = 0
            here.free[SLOW].set()
    assert list(in_rounds(done, "dropped")) == [1, 2]
    assert list(in_rounds(done, "suspended")) == [3]
    assert [one.row["clients"] for one in done[3:]] == [[0, 1, 2, SLOW]] * 3
    assert [one.row["tested"] for one in done[3:]] == [4] * 3


def test_who_trains_and_is_never_tested_is_suspended_too(clients: Callable[..., Clients]) -> None:
    here = clients(suspend_after=2)
    here.holds = lambda client, kind, round: client == SLOW and kind == "evaluate" and round <= 2
    network = here.network()
    done = []

    def heard(purpose: Purpose, *counts: int) -> None:  # in training, all answer
        here.late = int(purpose is Purpose.EVALUATE)
        here.heard(purpose, *counts)

    for one in here.rounds(3, network, heard):
        done.append(one)
        here.free[SLOW].set()  # it is done with its test, too late
        wait_until(lambda: here.server.members.by_id[SLOW].current is None, "it has answered")
        here.free[SLOW].clear()
    assert [one.row["clients"] for one in done] == [[0, 1, 2, SLOW], [0, 1, 2, SLOW], [0, 1, 2]]
    assert list(in_rounds(done, "untested").items())[:2] == [(1, "no answer in 3600 s"), (2, "no answer in 3600 s")]
    assert list(in_rounds(done, "suspended")) == [3]


def test_a_deadline_follows_what_answers_took(clients: Callable[..., Clients]) -> None:
    here = clients(grace=30.0, deadline_factor=5.0, deadline_floor=120.0)
    here.holds = lambda client, kind, round: client == SLOW and round >= 2
    here.leap = TIMEOUT / 2
    done = []
    for one in here.rounds(3):
        done.append(one)
        here.late = 1
    for key in ("dropped", "untested"):
        found = in_rounds(done, key)
        assert found.keys() == {2, 3}
        seconds = [float(re.fullmatch(r"no answer in ([\d.]+) s", why)[1]) for why in found.values()]  # type: ignore[index]
        assert all(150 <= one < here.leap for one in seconds), "150: the floor, and --grace"


def test_a_round_is_closed_by_its_quorum_and_the_late_ones_are_no_fault(clients: Callable[..., Clients]) -> None:
    here = clients(count=5, quorum=0.4, suspend_after=1)
    here.holds = lambda client, kind, round: client >= 2 and round <= 2
    done = []
    for one in here.rounds(3):
        done.append(one)
        if one.number == 2:  # the three have been late with each message of two rounds
            for event in here.free.values():
                event.set()
            wait_until(lambda: all(c.current is None for c in here.server.members.by_id.values()), "all are idle")
    late = "late: 2 of 5 had answered (quorum=0.4)"
    for one in done[:2]:
        assert one.row["clients"] == [0, 1]
        assert one.row["dropped"] == one.row["untested"] == dict.fromkeys(("2", "3", "4"), late)
    assert len(done[2].row["clients"]) >= 2
    assert not any("suspended" in one.row for one in done)
    told = lambda client: "the server waits no longer" in "".join(here.said[client])  # noqa: E731
    wait_until(lambda: all(map(told, (2, 3, 4))), "the late ones have heard so")


def test_who_hears_that_nobody_waits_cuts_its_upload_short() -> None:
    size = 32 << 20  # bytes: more than lies in the buffers on the way
    with serving() as server, Proxy(port(server)) as proxy:
        guest = Guest(proxy.address, answer=lambda body: [bytes(size if body == b"much" else 2)])
        until_present(server, 0)
        proxy.dribble_after(100_000)
        ticket = server.send(0, [b"much"])
        wait_until(lambda: proxy.passed[UP] > 100_000, "its upload has begun")
        server.give_up({ticket})
        wait_until(lambda: any("waits no longer" in line for line in guest.said), "it has heard")
        proxy.flow()
        assert ask(server, 0, b"more") == bytes(2)
        assert proxy.passed[UP] < size // 2
        guest.leave()


def test_who_has_not_begun_when_nobody_waits_any_more_does_not_begin() -> None:
    free = threading.Event()

    def slow(body: bytearray) -> list[bytes]:
        free.wait(PATIENCE)
        return [body]

    with serving() as server:
        guest = Guest(server.address, answer=slow)
        until_present(server, 0)
        tickets = {server.send(0, [text]) for text in (b"1", b"2")}
        wait_until(lambda: guest.asked == [b"1"], "it is at work on the first")
        server.give_up(tickets)
        last = server.send(0, [b"3"])
        free.set()
        (answer,) = receive(server, 1)
        assert (answer.ticket, answer.body) == (last, b"3")
        assert guest.asked == [b"1", b"3"]
        guest.leave()


def test_a_late_answer_is_thrown_away(clients: Callable[..., Clients]) -> None:
    """And its sender goes on from the memory that the server counts on."""
    here = clients(count=3, quorum=0.6)
    here.holds = lambda client, kind, round: client == 2 and round == 1
    first, *rest = [(here.free[2].set(), one)[1] for one in here.rounds(4)]
    assert first.row["dropped"].keys() == {"2"}
    assert all(set(one.row["clients"]) | {int(c) for c in one.row["dropped"]} == {0, 1, 2} for one in rest)


def test_where_too_few_are_left_the_suspended_are_tried_again_and_the_run_halts_by_name(
    clients: Callable[..., Clients],
) -> None:
    here = clients(count=3, suspend_after=1)
    here.holds = lambda client, kind, round: client == 2 or (client == 1 and round >= 2)
    done: list[Round] = []
    network = here.network()

    def heard(purpose: Purpose, round: int, number: int, asked: int) -> None:
        if number == (2 if round == 1 else 1):  # those who answer have
            here.ripe = True

    with pytest.raises(RunHalted, match="round 5: 2 of 3 uploads cannot be used: client 1: no answer in 3600 s; clie"):
        done.extend(here.rounds(9, network, heard, evaluate_every=0))
    assert [one.row["clients"] for one in done] == [[0, 1], [0], [0], [0]]
    assert [list(in_rounds(done, "suspended", client)) for client in (1, 2)] == [[3], [2, 4]], "in round 5 both"


def test_a_network_that_is_made_anew_knows_who_was_suspended(clients: Callable[..., Clients]) -> None:
    here = clients(suspend_after=1)
    here.late, here.holds = 1, lambda client, kind, round: client == SLOW
    network = here.network()
    rounds = here.rounds(9, network, evaluate_every=0)
    for _ in range(3):  # asked in rounds 1 and 3
        next(rounds)
    memories = network.memories.remember()
    assert memories[0] == {"round": 0}, "of who answers, no more than before"
    here.free[SLOW].set()
    again = here.network()
    assert again.client_ids() == [0, 1, 2, SLOW]
    again.memories.recall(memories, 3)
    assert again.client_ids() == [0, 1, 2]
    said = again.exchange(Purpose.TRAIN, 4, {}).suspended
    assert said == {SLOW: "missed 2 rounds in a row (no answer in 3600 s); asked again in round 6"}


def test_verify_says_where_a_difference_is_chance() -> None:
    rows = [{"round": 1, "dropped": {}}, {"round": 2, "dropped": {"1": f"{LATE}4 of 5 had answered (quorum=0.8)"}}]
    run = SimpleNamespace(path="runs/a", rows=lambda: rows)
    assert _late(run) == "; runs/a closed round 2 without who was late (quorum)"  # type: ignore[arg-type]
    rows[1]["dropped"] = {"1": "no answer in 9 s"}
    assert _late(run) == ""  # type: ignore[arg-type]


def test_the_screen_says_how_many_are_suspended(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(rounds=1) as progress:
        progress.row({"round": 1, "suspended": {"3": "missed 2 rounds"}, "digest": "0" * 64})
    assert "suspended 1" in capsys.readouterr().out


# As processes.


@pytest.mark.process
def test_in_a_deployment_one_byte_at_a_time_holds_up_two_rounds_of_five(tmp_path: Path) -> None:
    overrides = [*SMALL, "strategy=fedavg", "rounds=5", "timeout=20", "suspend_after=1", "evaluate_every=0"]
    with Deployment(tmp_path, certificates(tmp_path / "keys"), *overrides, "checkpoint_every=1") as made:
        patient = ["--heartbeat", "600"]  # its own answers to pings come byte by byte, too
        server = made.server(*patient)
        server.until("listening on")
        with Proxy(int(made.address.rpartition(":")[2])) as proxy:
            for client in (0, 1):
                made.client(client, *patient)
            server_at, made.address = made.address, proxy.address
            slow = made.client(2, *patient)
            made.address = server_at
            slow.until("connected to")
            proxy.dribble_after(2000)
            assert server.wait() == 0, server.said
    rows = RunFolder(made.run).rows()
    assert {row["round"]: row["dropped"] for row in rows if row["dropped"]} == {
        1: {"2": "no answer in 20 s"},
        3: {"2": "no answer in 20 s"},
    }
    assert [row["round"] for row in rows if "2" in row.get("suspended", {})] == [2, 4, 5]
    assert "client 2 is suspended: missed 1 round in a row" in server.said
