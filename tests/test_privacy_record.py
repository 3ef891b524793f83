"""A client's privacy record: what is changed in it is refused, and the line is named."""

import random
from pathlib import Path

import pytest

from fedshare.errors import UserError
from fedshare.transport.flower.memory import Record


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def put(path: Path, *texts: str) -> None:
    path.write_text("".join(texts))


DIGEST = ["0123456789abcdef" * 4, "f" * 64, "8" * 64, "a5" * 32]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    for round, digest in enumerate(DIGEST, 1):
        assert Record(tmp_path).spend(round, 1, digest, 10 * round) == sum(range(10, 10 * round + 1, 10))
    return tmp_path / "ledger"


def spend(record: Path) -> int:
    """Ask for what is entered already, which costs nothing more."""
    return Record(record.parent).spend(1, 1, DIGEST[0], 10)


def test_every_flipped_bit_of_a_privacy_record_is_refused(record: Path) -> None:
    data = record.read_bytes()
    assert spend(record) == 100
    draw = random.Random(0)
    for place in range(len(data)):
        bit = draw.randrange(8)
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        record.write_bytes(changed)
        with pytest.raises(UserError, match=r"^the privacy record .*/ledger is damaged: line [1-5] ") as error:
            spend(record)
        named = int(str(error.value).partition("damaged: line ")[2].split()[0])
        assert named - 1 <= data[:place].count(b"\n") + 1, f"byte {place}, bit {bit}"
    record.write_bytes(data)
    assert spend(record) == 100


@pytest.mark.parametrize(
    ("kept", "named"),
    [((1, 2, 3), 1), ((0, 2, 3), 2), ((0, 1, 3), 3), ((0, 2, 1, 3), 2), ((0, 0, 1, 2, 3), 2), ((0, 1, 2, 3, 3), 5)],
)
def test_lines_removed_moved_or_repeated_are_refused(kept: tuple[int, ...], named: int, record: Path) -> None:
    held = lines(record)
    put(record, *(held[line] for line in kept))
    before = record.read_bytes()
    with pytest.raises(UserError, match=f"line {named} does not follow from the lines before$"):
        Record(record.parent).spend(5, 1, DIGEST[0], 1)
    assert record.read_bytes() == before


def test_a_privacy_record_cut_short_in_a_line_is_refused(record: Path) -> None:
    data = record.read_bytes()
    for length in range(1, len(data), 7):
        if data[length - 1 : length] != b"\n":
            record.write_bytes(data[:length])
            with pytest.raises(UserError, match=r"line [1-4] is cut short$"):
                spend(record)


def test_an_older_privacy_record_is_read_said_to_be_unchecked_and_covered_from_then_on(
    record: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    older = [line.rpartition(" ")[0] + "\n" for line in lines(record)]
    put(record, *older)
    capfd.readouterr()
    assert spend(record) == 100
    assert capfd.readouterr().err == (
        f"warning: the privacy record {record}: its 4 lines are of a version without checksums, and are not checked\n"
    )
    assert Record(record.parent).spend(5, 1, DIGEST[0], 1) == 101
    held = lines(record)
    assert held[:4] == older
    assert spend(record) == 101
    put(record, held[0], held[1].replace(" 20", " 2"), *held[2:])
    with pytest.raises(UserError, match=r"line 5 does not follow from the lines before$"):
        spend(record)
    put(record, *held[1:])
    with pytest.raises(UserError, match="line 4 does not follow"):
        spend(record)
    put(record, *held, older[0])
    with pytest.raises(UserError, match=r"line 6 must be round, fit, SHA-256, steps, SHA-256$"):
        spend(record)
