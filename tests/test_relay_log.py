"""The log of a relay: rounds, their chain, who takes part, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

import relayed
from fedshare.errors import UserError
from fedshare.identity.signing import Signer
from fedshare.relay import entries, proofs
from fedshare.relay.commits import Commit
from fedshare.relay.database import SQLite
from fedshare.relay.entries import RELAY, Entry, Kind
from fedshare.relay.keeper import Keeper
from fedshare.relay.members import Members, uploads
from fedshare.relay.sequencer import Status
from fedshare.relay.store import Store
from fedshare.relay.verify import check
from relayed import RUN, Log


def test_a_round_ends_when_all_have_spoken(tmp_path: Path) -> None:
    with Log(tmp_path, peers=3) as log:
        log.admit(1, 2)
        assert log.keeper.sequencer.waits_for() == "round 1 waits for peers: 2 of 3 have come"
        log.admit(3)
        first = log.until(0)
        assert [one.kind for one in first.entries] == [Kind.MANIFEST, Kind.ADMIT, Kind.ADMIT, Kind.ADMIT]
        for peer in (3, 1):
            assert log.say(log.entry(peer, 1, 1, b"from %d" % peer)).status is Status.TAKEN
        assert log.keeper.sequencer.waits_for() == "round 1 waits for peer 2"
        log.say(log.entry(2, 1, 1, b"from 2"))
        commit = log.until(1)
        assert uploads(commit, [1, 2, 3]) == {1: b"from 1", 2: b"from 2", 3: b"from 3"}
        assert commit.head(log.heads[0]) == log.heads[1]
        assert Commit.unpack(commit.pack()) == commit


def test_late_peers_are_not_waited_for_and_return(tmp_path: Path) -> None:
    with Log(tmp_path, round_seconds=0.05, peers=3) as log:
        log.admit(0, 1, 2)
        log.until(0)
        members = log.keeper.sequencer.members
        for round in range(1, 5):
            for peer in (0, 1):
                log.say(log.entry(peer, round, round))
            log.until(round)
            assert members.ids() == [0, 1]
            assert members.awaited() == ([0, 1, 2] if round < 3 else [0, 1])
        assert log.say(log.entry(2, 1, 2)).status is Status.LATE
        assert log.say(log.entry(2, 2, 5, b"")).status is Status.TAKEN
        for peer in (0, 1):
            log.say(log.entry(peer, 5, 5))
        assert sorted(uploads(log.until(5), [0, 1])) == [0, 1]
        assert members.ids() == [0, 1, 2]


def test_joining_and_leaving_take_effect_in_the_next_round(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.admit(0, 1)
        log.until(0)
        log.admit(2)
        assert log.say(log.entry(2, 1, 1)).why == "peer 2 is not admitted"
        log.say(log.entry(0, 1, 1))
        log.say(log.entry(1, 1, 1))
        log.until(1)
        assert log.keeper.sequencer.members.ids() == [0, 1, 2]
        log.say(log.entry(0, 2, 2, b"", Kind.LEAVE))
        for peer, number in ((1, 2), (2, 1)):
            log.say(log.entry(peer, number, 2))
        log.until(2)
        assert log.keeper.sequencer.members.ids() == [1, 2]
        assert log.say(log.entry(0, 3, 3)).why == "peer 0 has left"
        log.admit(0)
        for peer, number in ((1, 3), (2, 2)):
            log.say(log.entry(peer, number, 3))
        log.until(3)
        assert log.keeper.sequencer.members.ids() == [0, 1, 2]


def test_what_is_wrong_is_refused_alone(tmp_path: Path) -> None:
    with Log(tmp_path, message=10) as log:
        log.admit(0, 1)
        log.until(0)
        good = log.entry(0, 1, 1)
        for wrong, why in (
            (log.entry(9, 1, 1), "peer 9 is not admitted"),
            (replace(good, signature=bytes(64)), "its signature is not its peer's"),
            (replace(good, body=b"y"), "its signature is not its peer's"),
            (replace(good, signature=b"short"), "a signature of 5 bytes"),
            (log.entry(0, 1, 2), "it is for round 2, and the log is at round 1"),
            (log.entry(0, 0, 1), "number and round must be 1 to 2^63 - 1"),
            (log.entry(0, 2**64 - 1, 1), "number and round must be 1 to 2^63 - 1"),
            (log.entry(0, 1, 1, bytes(11)), "a message of 11 bytes; at most 10 are taken"),
            (log.entry(0, 1, 1, b"x", Kind.LEAVE), "a body of 1 bytes, where 0 are allowed"),
            (log.entry(0, 1, 1, b"x", Kind.REMOVE), "an entry of kind 4"),
        ):
            verdict = log.say(wrong)
            assert verdict.status is Status.REFUSED
            assert verdict.why.startswith(why)
        assert log.say(good).status is Status.TAKEN
        assert log.say(good).status is Status.KNOWN
        assert log.say(log.entry(0, 2, 1)).why == "a second message of peer 0 in round 1"
        log.say(log.entry(1, 5, 1))  # numbers may be skipped: a message that came too late has one
        log.until(1)
        assert log.say(good).status is Status.KNOWN
        assert log.say(log.entry(1, 3, 2)).why == "number 3 was skipped; the last one is 5"


@pytest.mark.parametrize("committed", [False, True])
def test_two_things_under_one_number_are_proven_and_end_in_removal(tmp_path: Path, committed: bool) -> None:
    with Log(tmp_path, peers=3) as log:
        log.admit(0, 1, 2)
        log.until(0)
        log.say(log.entry(0, 1, 1, b"one"))
        if committed:
            for peer in (1, 2):
                log.say(log.entry(peer, 1, 1))
            log.until(1)
        verdict = log.say(log.entry(0, 1, 1, b"other"))
        assert verdict.status is Status.TWO_THINGS
        assert verdict.why == "peer 0 has said two things under number 1"
        round = 1 + committed
        for peer in (1, 2):
            log.say(log.entry(peer, round, round))
        removal = next(one for one in log.until(round).entries if one.kind == Kind.REMOVE)
        peer, why, proof = entries.removed(removal)
        assert (peer, why) == (0, verdict.why)
        assert proofs.convicts(proof, RUN, relayed.signer(0).public)
        assert not proofs.convicts(proof, RUN, relayed.signer(1).public)
        assert not proofs.convicts(proof[: len(proof) // 2] * 2, RUN, relayed.signer(0).public)
        assert log.keeper.sequencer.members.ids() == [1, 2]
        assert "was removed: peer 0 has said two things" in log.say(log.entry(0, 2, round + 1)).why
        assert log.admit(0)[0].status is Status.REFUSED


def test_a_log_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.admit(0)
    with Log(tmp_path) as log:
        assert log.keeper.run == RUN
        log.admit(1)
        log.until(0)
        log.say(log.entry(0, 1, 1))
    with Log(tmp_path) as log:
        assert log.say(log.entry(0, 1, 1)).status is Status.KNOWN
        log.say(log.entry(1, 1, 1))
        fence = next(one for one in log.until(1).entries if one.kind == Kind.FENCE)
        assert (fence.peer, fence.body) == (RELAY, b"3")
        assert check(log.store).members.round == 1


def test_a_log_is_of_one_run_and_one_relay(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.admit(0, 1)
        log.until(0)
        other = relayed.answered(lambda done: log.keeper.admit(bytes(32), 2, bytes(32), b"", done))
        assert other.why == "it is of run 000000000000, the log of run 000102030405"
        with pytest.raises(UserError, match="another relay has this log open"):
            SQLite(tmp_path / "log.db")
    store = Store(SQLite(tmp_path / "log.db"))
    with pytest.raises(UserError, match="another relay's key has begun this log"):
        Keeper(store, Signer.unprotected("other"), log.keeper.settings)


def test_nothing_is_taken_while_the_disk_is_full(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.admit(0, 1)
        log.until(0)
        log.full = "less than 10 MB free"
        verdict = log.say(log.entry(0, 1, 1))
        assert (verdict.status, verdict.why) == (Status.FULL, log.full)
        log.full = None
        while log.say(log.entry(0, 1, 1)).status is Status.FULL:
            pass
        log.say(log.entry(1, 1, 1))
        assert sorted(uploads(log.until(1), [0, 1])) == [0, 1]


def test_a_full_database_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    database = SQLite(tmp_path / "log.db")
    with Log(tmp_path, Store(database)) as log:
        log.admit(0, 1)
        log.until(0)
        log.say(log.entry(0, 1, 1))
        pages = database.execute("PRAGMA page_count")[0][0]
        database.execute(f"PRAGMA max_page_count={pages + 1}")
        verdict = log.say(log.entry(1, 1, 1, bytes(200_000)))
        assert verdict.status is Status.FULL
        assert "is full" in verdict.why
        database.execute("PRAGMA max_page_count=100000")
        while log.say(log.entry(1, 1, 1, bytes(200_000))).status is Status.FULL:
            pass
        assert sorted(uploads(log.until(1), [0, 1])) == [0, 1]
        assert check(log.store).entries == 5


def test_damage_is_named(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.admit(0, 1)
        log.until(0)
        for round in (1, 2):
            for peer in (0, 1):
                log.say(log.entry(peer, round, round))
            log.until(round)
    path = tmp_path / "log.db"
    for damage, message in (
        ("UPDATE entries SET body = x'00' WHERE round = 2 AND peer = 1", "round 2: is damaged: its entries are not"),
        ("UPDATE entries SET number = 7 WHERE round = 1 AND peer = 1", "round 1: is damaged: its entries are not"),
        ("DELETE FROM commits WHERE round = 1", "is damaged: round 1 is missing, up to 2"),
        ("UPDATE commits SET signature = x'00' WHERE round = 1", "round 1: is damaged: the relay has not signed"),
    ):
        database = SQLite(path)
        database.execute("BEGIN")
        database.execute(damage)
        with pytest.raises(UserError, match=message):
            check(Store(database, write=False))
        database.execute("ROLLBACK")
        assert check(Store(database, write=False)).members.round == 2
        database.close()


def test_members_survive_packing(tmp_path: Path) -> None:
    members = Members()
    members.apply(Commit(0, 1, (entries.manifest(RUN, bytes(32)), entries.admit(2, 0, 5, bytes(32), b"pem"))))
    again = Members.unpack(members.pack())
    assert (again.round, again.all, again.pack()) == (0, members.all, members.pack())
    assert again.ids() == [5]
    for wrong in (b"", b"[]", b"{}", b'{"round":1,"members":{"x":{}}}'):
        with pytest.raises(ValueError):
            Members.unpack(wrong)


def test_bytes_that_are_no_commit() -> None:
    commit = Commit(3, 1, (Entry(Kind.MESSAGE, 1, 1, 3, b"body", bytes(64)),))
    data = commit.pack()
    for wrong in (b"", data[:-1], data + b"x", b"x" + data[1:], data[:32] + b"\xff" * 4 + data[36:]):
        with pytest.raises(ValueError):
            Commit.unpack(wrong)
