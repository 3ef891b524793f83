"""What a peer has said is on disk before it is sent, and whole or not at all after a crash."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshare.errors import UserError
from fedshare.transport.mesh.spool import Spool

RUN = b"r" * 32


def reopened(folder: Path, run: bytes = RUN, me: int = 3) -> Spool:
    return Spool(folder, run, me)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three rounds, of which the last two are kept."""
    spool = Spool(tmp_path, RUN, 3)
    for round in (1, 2, 3):
        spool.begin(round, round, {0: 1, 5: round})
        spool.say(0, {0: b"first %d" % round, 5: b"first %d" % round})
        spool.say(1, {0: b"", 5: b"second"})
    spool.close(5)
    spool.release()
    return tmp_path


def test_what_was_said_in_the_last_two_rounds_is_there(folder: Path) -> None:
    spool = reopened(folder)
    assert [round.number for round in spool.rounds] == [2, 3]
    assert spool.rounds[0].links == {0: 1, 5: 2}
    assert spool.last
    assert spool.last.links == {0: 1}  # the other one was closed
    assert spool.last.steps == {0: {0: b"first 3", 5: b"first 3"}, 1: {0: b"", 5: b"second"}}
    assert sorted(spool.said()) == [2 << 16, (2 << 16) + 1, 3 << 16, (3 << 16) + 1]
    spool.begin(3, 3, {0: 1})  # again, after a restart: nothing is forgotten
    assert spool.last.steps[0][0] == b"first 3"
    spool.clear()
    spool.release()
    spool = reopened(folder)
    assert spool.last is None
    spool.release()


def test_equal_messages_are_written_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, RUN, 3)
    spool.begin(1, 1, dict.fromkeys(range(100), 1))
    spool.say(0, {peer: bytes(10_000) for peer in range(100)})
    spool.release()
    assert (tmp_path / "round-000000000001.spool").stat().st_size < 20_000
    spool = reopened(tmp_path)
    assert spool.last
    assert spool.last.steps[0] == {peer: bytes(10_000) for peer in range(100)}
    spool.release()


def test_wherever_a_crash_cuts_it_off_what_is_left_is_whole_and_goes_on(folder: Path, tmp_path: Path) -> None:
    path = folder / "round-000000000003.spool"
    data = path.read_bytes()
    spool = reopened(folder)
    assert spool.last
    whole = spool.last.steps
    spool.release()
    for cut in range(len(data) - 1, 100, -1):
        path.write_bytes(data[:cut])
        spool = reopened(folder)
        assert spool.last
        for step, said in spool.last.steps.items():
            assert said == whole[step]
        spool.say(7, {0: b"after"})
        spool.release()
        spool = reopened(folder)
        assert spool.last
        assert spool.last.steps[7] == {0: b"after"}
        spool.release()


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_damaged_file_is_refused_or_cut_off_and_never_believed(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, RUN, 3)
    spool.begin(1, 1, {0: 1})
    spool.say(0, {0: b"said"})
    spool.release()
    path = folder / "round-000000000001.spool"
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with suppress(UserError):
        spool = reopened(folder)
        assert spool.last
        assert spool.last.steps in ({}, {0: {0: b"said"}})
        spool.release()


def test_a_changed_record_that_is_not_the_last_one_is_refused(folder: Path) -> None:
    path = folder / "round-000000000003.spool"
    path.write_bytes(path.read_bytes().replace(b"first 3", b"other 3", 1))
    with pytest.raises(UserError, match=r"round-000000000003.spool: is damaged \(a record that is not the last one"):
        reopened(folder)


def test_a_folder_of_another_run_or_peer_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="is of another run"):
        reopened(folder, run=b"q" * 32)
    with pytest.raises(UserError, match="is of peer 3"):
        reopened(folder, me=4)
    reopened(folder).release()
