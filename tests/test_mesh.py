"""Links among peers over gRPC, with real sockets and processes: nothing is lost that need not be."""

import signal
from pathlib import Path

import pytest

from fedshare.experiments.commands.keys import keys as keys_command
from meshed import Meshed
from proxy import DOWN, UP, Proxy

pytestmark = pytest.mark.process
POINTS = ["mesh.before-spool:7", "mesh.after-spool:7", "mesh.after-send:7", "mesh.mid-round:7"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "keys"
    keys_command([str(folder), "--peers", "5"])
    return folder


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_everyone_has_every_message_of_every_round(secure: bool, tmp_path: Path, keys: Path) -> None:
    with Meshed(tmp_path, 4, 20, keys if secure else None) as mesh:
        for peer in mesh.start_all():
            peer.done()
        mesh.check()
        assert not mesh.lost()
        assert [len(mesh.rows(me)) for me in range(4)] == [20] * 4
        assert [row["fresh"] for row in mesh.rows(0)] == [[1, 2, 3], *[[]] * 19]


def test_a_peer_that_is_killed_and_started_again_loses_nothing(tmp_path: Path, keys: Path) -> None:
    with Meshed(tmp_path, 4, 40, keys) as mesh:
        peers = mesh.start_all()
        for round in (5, 15, 25):
            mesh.reach(2, round)
            peers[2].kill()
            peers[2] = mesh.start(2)
        for peer in peers:
            peer.done()
        mesh.check()
        assert not mesh.lost()
        assert [row["fresh"] for row in mesh.rows(0)] == [[1, 2, 3], *[[]] * 39]


@pytest.mark.parametrize("point", POINTS)
def test_a_peer_that_is_killed_at_any_point_loses_nothing(point: str, tmp_path: Path) -> None:
    with Meshed(tmp_path, 3, 12) as mesh:
        peers = [mesh.start(0), mesh.start(2)]
        assert mesh.start(1, FEDSHARE_FAILPOINT=point).wait() == -signal.SIGKILL
        for peer in [*peers, mesh.start(1)]:
            peer.done()
        mesh.check()
        assert not mesh.lost()


def test_a_peer_that_joins_late_is_fresh_to_all_in_the_same_round(tmp_path: Path) -> None:
    with Meshed(tmp_path, 4, 10**6, None, "--wait", "10") as mesh:
        for me in (0, 1, 3):
            mesh.start(me)
        mesh.reach(0, 5)
        mesh.start(2, "--wait", "600")
        mesh.reach(2, 5)
        began = mesh.rows(2)[0]["round"]
        assert began > 5
        mesh.reach(0, began + 5)
        for peer in mesh.started:
            peer.signal(signal.SIGTERM)
            peer.wait()
        mesh.check()
        assert mesh.rows(2)[0]["fresh"] == [0, 1, 3]
        for me in (0, 1, 3):
            fresh = {row["round"]: row["fresh"] for row in mesh.rows(me)}
            assert fresh[began] == [2]
            assert (began, 2, "join") in mesh.events(me)
        assert mesh.events(2)[0] == (began, 2, "join")


def test_a_peer_that_leaves_is_awaited_no_more(tmp_path: Path) -> None:
    with Meshed(tmp_path, 3, 15) as mesh:
        peers = [mesh.start(0), mesh.start(1, "--leave-after", "6"), mesh.start(2)]
        for peer in peers:
            peer.done()
        mesh.check()
        assert mesh.lost() == [(me, round, 1) for me in (0, 2) for round in range(7, 16) for _ in range(2)]
        for me in (0, 1, 2):
            assert (7, 1, "leave") in mesh.events(me)
            assert "crash" not in str(mesh.events(me))


def test_both_halves_of_a_partition_go_on_and_meet_again(tmp_path: Path) -> None:
    with Meshed(tmp_path, 4, 10**6, None, "--grace", "1", "--heartbeat", "0.3") as mesh:
        with Proxy(int(mesh.ports[0])) as first, Proxy(int(mesh.ports[1])) as second:
            across = [proxy.address.rpartition(":")[2] for proxy in (first, second)]
            for me in range(4):  # those on the one side also say that they are reached through the proxies
                ports = [across[peer] if peer == me or me > 1 else mesh.ports[peer] for peer in (0, 1)]
                mesh.start(me, ports=[*ports, *mesh.ports[2:]])
            mesh.reach(3, 5)
            for proxy in (first, second):
                proxy.hold()
            for me in (0, 3):
                mesh.started[me].until("goes on without")
                mesh.reach(me, mesh.round(me) + 5)
            for proxy in (first, second):
                proxy.cut()
                proxy.release()
            for me in range(4):
                mesh.meet(me, {0, 1, 2, 3} - {me}, after=max(mesh.round(me) for me in range(4)))
            for peer in mesh.started:
                peer.signal(signal.SIGTERM)
                peer.wait()
        mesh.check()


def test_a_peer_that_stood_still_comes_back(tmp_path: Path) -> None:
    with Meshed(tmp_path, 3, 10**6, None, "--grace", "1", "--heartbeat", "0.3") as mesh:
        peers = mesh.start_all()
        mesh.reach(1, 5)
        peers[1].signal(signal.SIGSTOP)
        for me in (0, 2):
            peers[me].until("goes on without peer 1")
            mesh.reach(me, mesh.round(me) + 5)
        away = mesh.round(1)
        peers[1].signal(signal.SIGCONT)
        mesh.meet(1, {0, 2}, after=max(mesh.round(0), away + 5))
        for peer in peers:
            peer.signal(signal.SIGTERM)
            peer.wait()
        mesh.check()


def test_large_messages_and_empty_ones_arrive(tmp_path: Path, keys: Path) -> None:
    for size in (50_000_000, 0):
        folder = tmp_path / str(size)
        folder.mkdir()
        with Meshed(folder, 2, 2, keys, "--size", str(size)) as mesh:
            for peer in mesh.start_all():
                peer.done()
            mesh.check()
            assert not mesh.lost()


def test_one_known_peer_tells_where_the_others_are(tmp_path: Path, keys: Path) -> None:
    with Meshed(tmp_path, 4, 10, keys) as mesh:
        known = f"127.0.0.1:{mesh.ports[1]}"
        for me in range(4):
            mesh.start(me, "--known", known, ports=["x"] * 4)
        for peer in mesh.started:
            peer.done()
        mesh.check()
        assert not mesh.lost()


def test_cuts_and_spoilt_bytes_lose_nothing(tmp_path: Path, keys: Path) -> None:
    with Meshed(tmp_path, 3, 40, keys, "--size", "100000") as mesh, Proxy(int(mesh.ports[0]), seed=1) as proxy:
        port = proxy.address.rpartition(":")[2]
        for me in range(3):  # all that goes to and from peer 0
            mesh.start(me, ports=[port, *mesh.ports[1:]])
        for round, harm in enumerate((proxy.cut, *(lambda way=way: proxy.spoil(way) for way in (UP, DOWN)), proxy.cut)):
            mesh.reach(0, 4 + 6 * round)
            harm()
        for peer in mesh.started:
            peer.done()
        mesh.check()
        assert not mesh.lost()
        assert proxy.connections > 3


def test_a_peer_that_is_started_again_too_late_joins_as_a_new_one(tmp_path: Path) -> None:
    with Meshed(tmp_path, 3, 10**6, None, "--grace", "2") as mesh:
        peers = mesh.start_all()
        mesh.reach(1, 5)
        peers[1].kill()
        for me in (0, 2):
            peers[me].until("goes on without peer 1")
            mesh.reach(me, mesh.round(me) + 3)
        away = mesh.round(1)
        mesh.start(1)
        mesh.meet(1, {0, 2}, after=away)
        back = next(row for row in mesh.rows(1) if row["round"] > away)
        assert back["round"] > away + 3
        assert back["fresh"] == [0, 2]
        mesh.reach(0, back["round"] + 2)
        # Peer 0 may have gone to that round at once, so that its link with peer 2 has opened anew, too.
        assert 1 in {row["round"]: row["fresh"] for row in mesh.rows(0)}[back["round"]]
        events = [event for event in mesh.events(0) if event[1] == 1]
        assert [what for _, _, what in events] == ["crash", "rejoin"]
        assert away <= events[0][0] <= away + 2  # it may have sent a round before it could note it
        assert events[1][0] == back["round"]
        mesh.check()
