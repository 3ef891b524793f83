"""The ledger's file: whatever happens to it, what is read is what was written, or nothing."""

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedshare.errors import UserError
from fedshare.ledger import Commit, Manifest, number
from fedshare.ledger import file as ledger_file
from fedshare.ledger.file import LONGEST, Contents, LedgerFile

MANIFEST = Manifest(3, [("w", [2, 3]), ("b", [2])], "0" * 64, "byte", "signs", 26)
COMMITS = [
    Commit(1, 82, {0: b"\x01\x02\x80", 2: b"\x47\xc7\x00"}),
    Commit(2, 82, {}),
    Commit(7, 300, {1: bytes(range(140))}),  # its length, and that of its codes, are above 127
    Commit(300, 0, {0: b"\xff", 1: b"\x00", 70_000: b""}),
]


def written(path: Path, commits: list[Commit] = COMMITS, manifest: Manifest = MANIFEST) -> LedgerFile:
    file, head = LedgerFile(path), manifest.head
    file.create(manifest)
    for commit in commits:
        head = commit.head(head)
        file.append(commit, head)
    return file


def spoiled(file: LedgerFile, data: bytes) -> str:
    """What is said of the file with `data` instead, which must be an error."""
    with pytest.raises(UserError) as error:
        file.parsed(data)
    assert str(error.value).startswith(f"{file.path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_appended_is_read_and_reading_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path / "ledger")
    data, stat = file.path.read_bytes(), file.path.stat()
    contents = file.read()
    assert (contents.manifest, contents.commits, contents.cut) == (MANIFEST, COMMITS, 0)
    head = MANIFEST.head
    for place in contents.places:
        head = place.commit.head(head)
        assert place.head == head
    assert contents.head == head
    assert contents.places[-1].end == contents.end == len(data)
    assert data[: contents.start].endswith(bytes.fromhex(MANIFEST.head))
    assert file.shortened(contents) is None
    assert (file.path.read_bytes(), file.path.stat().st_mtime_ns) == (data, stat.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


def test_a_ledger_without_commits_is_one(tmp_path: Path) -> None:
    contents = written(tmp_path / "ledger", []).read()
    assert contents == Contents(MANIFEST, contents.start, [], contents.start, 0)
    assert contents.head == MANIFEST.head


def test_cut_at_any_byte_it_is_whole_up_to_there_and_says_so(tmp_path: Path) -> None:
    file = written(tmp_path / "ledger")
    data, whole = file.path.read_bytes(), file.read()
    ends = [whole.start, *(place.end for place in whole.places)]
    for length in range(len(data)):
        if length < whole.start:
            said = spoiled(file, data[:length])
            assert "manifest is damaged" in said or "not a ledger" in said
            continue
        contents = file.parsed(data[:length])
        count = sum(end <= length for end in ends) - 1
        assert contents.places == whole.places[:count]
        assert (contents.end, contents.cut) == (ends[count], length - ends[count])
        said = file.shortened(contents) or ""
        assert bool(said) == bool(contents.cut)
        if said:
            last = COMMITS[count - 1].round if count else 0
            assert said == (
                f"{file.path}: its last {contents.cut} bytes are of a commit cut short; it is whole up to round {last}"
            )


def test_any_wrong_byte_is_found_and_named(tmp_path: Path) -> None:
    file = written(tmp_path / "ledger")
    data, whole = file.path.read_bytes(), file.read()
    starts = [whole.start, *(place.end for place in whole.places)]
    for at in range(len(data)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            said = spoiled(file, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            if at < 16:
                assert "not a ledger: it does not begin with 'fedshare ledger'" in said
            elif at < whole.start:
                assert "its manifest is damaged: " in said
            else:
                assert f"at byte {max(start for start in starts if start <= at)}" in said, said


def test_no_wrong_byte_of_a_length_looks_like_a_cut(tmp_path: Path) -> None:
    """With two check bytes behind a length of varying size, the bit 7 of the second byte of this one did."""
    long = Commit(139, 1, {0: bytes(944)})
    file = written(tmp_path / "ledger", [long, Commit(140, 1, {})])
    data, start = file.path.read_bytes(), file.read().start
    for at in range(start, start + 5):
        for mask in range(1, 256):
            said = spoiled(file, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            assert said.endswith(f"damaged at byte {start}: no commit has such a length")


@given(st.integers(0, LONGEST), st.integers(0, 4), st.integers(1, 255))
def test_a_wrong_byte_makes_no_length_of_any(length: int, at: int, mask: int) -> None:
    assert (length * ledger_file._PRIME ^ mask << 8 * at) % ledger_file._PRIME


def test_commits_that_change_places_come_twice_or_are_lacking_are_found(tmp_path: Path) -> None:
    file = written(tmp_path / "ledger")
    data, whole = file.path.read_bytes(), file.read()
    ends = [whole.start, *(place.end for place in whole.places)]
    begin, first, second, *rest = (data[a:b] for a, b in zip([0, *ends], ends, strict=False))
    for other in ([second, first, *rest], [first, first, second, *rest], [second, *rest], [first, *rest]):
        assert ", at byte " in spoiled(file, begin + b"".join(other))


def test_a_round_that_does_not_ascend_is_found(tmp_path: Path) -> None:
    for rounds in ((1, 1), (2, 1), (0,)):
        file = written(tmp_path / "ledger", [Commit(round, 1, {}) for round in rounds])
        assert f"round {rounds[-1]} follows it" in spoiled(file, file.path.read_bytes())


def test_what_is_rewound_is_forgotten_and_what_was_cut_short_too(tmp_path: Path) -> None:
    for round, kept in ((0, 0), (1, 1), (6, 2), (7, 3), (300, 4), (999, 4)):
        file = written(tmp_path / "ledger")
        assert file.rewind(round) is None
        assert file.read().commits == COMMITS[:kept]
        again = written(tmp_path / "again", COMMITS[:kept])
        assert file.path.read_bytes() == again.path.read_bytes()

        with file.path.open("ab") as tail:
            tail.write(b"\0\0\0")
        assert "its last 3 bytes are of a commit cut short" in (file.rewind(round) or "")
        assert file.path.read_bytes() == again.path.read_bytes()
        next_ = Commit(1000, 5, {0: b"abc"})
        file.append(next_, next_.head(file.read().head))
        assert file.read().commits == [*COMMITS[:kept], next_]


def test_a_damaged_ledger_is_not_rewound(tmp_path: Path) -> None:
    file = written(tmp_path / "ledger")
    data = bytearray(file.path.read_bytes())
    data[-1] ^= 1
    file.path.write_bytes(data)
    with pytest.raises(UserError, match="damaged after round 7"):
        file.rewind(1)
    assert file.path.read_bytes() == data


def test_a_manifest_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    file = written(tmp_path / "ledger", [])
    for before, after, says in (
        (b'"format":1', b'"format":2', "cannot be read: it has format 2; this version reads up to 1"),
        (b'"pool":0', b'"poll":0', "cannot be read: its manifest has codes, directions, format, "),
        (b'"pool":0', b'"pool": 0', "cannot be read: its manifest is written in another way"),
    ):
        packed = MANIFEST.pack().replace(before, after)
        data = b"fedshare ledger\n" + bytes(number(len(packed))) + packed + hashlib.sha256(packed).digest()
        assert says in spoiled(file, data)


def test_what_cannot_be_read_or_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none: cannot be read: No such file"):
        LedgerFile(tmp_path / "none").read()
    file = written(tmp_path / "ledger", [])
    monkeypatch.setattr(ledger_file, "LONGEST", 20)
    with pytest.raises(UserError, match="ledger: round 3 has 55 bytes; a commit may have 20"):
        file.append(Commit(3, 1, {0: bytes(50)}), MANIFEST.head)
    assert file.read().commits == []


@pytest.mark.parametrize(
    ("peers", "probes", "most"),
    [(1, 1, 22), (1, 8, 22), (1, 127, 22), (1, 2048, 22), (8, 1, 35), (8, 8, 35)],
)
def test_framing_takes_no_more_than_the_docstring_says(peers: int, probes: int, most: int, tmp_path: Path) -> None:
    draw = random.Random(0)
    ids = draw.sample(range(128), peers)
    some = [Commit(2**21 - 9 + round, 2**14 - 1, {id: draw.randbytes(probes) for id in ids}) for round in range(9)]
    file = written(tmp_path / "ledger", some)
    contents = file.read()
    each = (contents.end - contents.start) / len(some) - peers * probes
    assert each <= most
    assert f"{most}" in (ledger_file.__doc__ or "")
    if (peers, probes) == (8, 8):
        assert each / 64 <= 0.55


numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**63))
commits = st.builds(Commit, numbers, numbers, st.dictionaries(numbers, st.binary(max_size=200), max_size=5))


@given(commits)
def test_a_commit_is_unpacked_as_it_was_packed(commit: Commit) -> None:
    packed = commit.pack()
    assert Commit.unpack(packed) == commit
    shuffled = Commit(commit.round, commit.step, dict(reversed(commit.said.items())))
    assert shuffled.pack() == packed, "in whatever order the peers were heard"
    for end in range(len(packed)):
        with pytest.raises(ValueError):
            Commit.unpack(packed[:end])


@given(commits, st.data())
def test_no_other_bytes_are_the_same_commit(commit: Commit, data: st.DataObject) -> None:
    """Nor does anything but ValueError come of bytes that are none."""
    packed = commit.pack()
    at = data.draw(st.integers(0, len(packed)))
    other = packed[:at] + data.draw(st.binary(max_size=3)) + packed[at + data.draw(st.integers(0, 3)) :]
    try:
        found = Commit.unpack(other)
    except ValueError:
        return
    assert found.pack() == other
    assert (found == commit) == (other == packed)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_commit_that_packs_to_them_or_none(data: bytes) -> None:
    try:
        found = Commit.unpack(data)
    except ValueError:
        return
    assert found.pack() == data
