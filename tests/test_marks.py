"""The key by which a user knows his configs again."""

import os
from pathlib import Path

import pytest

from fedshare.identity import marks


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FEDSHARE_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "fedshare"


def test_a_key_is_made_once_and_its_user_s_alone(home: Path) -> None:
    assert not marks.is_marked("a", ["x"])
    assert not home.exists(), "to look makes none"
    mark = marks.mark("a")
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["key"]
    assert marks.mark("a") == mark
    assert marks.is_marked("a", ["of another", mark])
    assert not marks.is_marked("b", [mark])
    assert not marks.is_marked("a", ["é", ""])


def test_another_key_gives_other_marks(home: Path) -> None:
    mark = marks.mark("a")
    (home / "key").unlink()
    assert marks.mark("a") != mark
    assert not marks.is_marked("a", [mark])


def test_a_process_that_came_second_takes_the_first_one_s_key(home: Path) -> None:
    mark = marks.mark("a")
    marks._create(home / "key")
    assert marks.mark("a") == mark


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_may_have_read_is_none(mode: int, home: Path) -> None:
    mark = marks.mark("a")
    (home / "key").chmod(mode)
    assert not marks.is_marked("a", [mark])
    with pytest.raises(OSError, match="chmod 600"):
        marks.mark("a")


def test_a_damaged_key_is_none(home: Path) -> None:
    mark = marks.mark("a")
    with (home / "key").open("ab") as file:
        file.write(b"x")
    assert not marks.is_marked("a", [mark])


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give a file away")
def test_a_key_of_another_user_s_is_none(home: Path) -> None:
    mark = marks.mark("a")
    os.chown(home / "key", 12345, -1)
    assert not marks.is_marked("a", [mark])
