"""The one-byte strategy's foundations: a number in a byte, and directions that follow from who sends it."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshare import directions, seeds
from fedshare.directions import BLOCK, LIMIT, PROBES, Origin, accumulate, philox, random_bytes, signs
from fedshare.ledger import codes
from fedshare.ledger.codes import INTEGERS, NEGATIVE, NOTHING, ONE, UNIT, VALUES, ZERO, encode, encode_sign

LEAST, LARGEST = 19 * UNIT, 2**20 * UNIT
WORD, LONG = 2**32 - 1, 2**64 - 1

within = st.floats(LEAST, LARGEST) | st.floats(-LARGEST, -LEAST)
anything = st.floats(allow_nan=True, allow_infinity=True)
edges = st.sampled_from([0, 1, 10, 11, 2**31, WORD])
words = edges | st.integers(0, WORD)
longs = edges | st.integers(WORD, LONG)
origins = st.builds(Origin, run=longs, peer=words, sequence=longs)
integers = st.lists(st.integers(-(2**20), 2**20), max_size=PROBES)


def uniform(count: int, *key: seeds.Key) -> np.ndarray:
    return torch.rand(count, generator=seeds.generator(*key), dtype=torch.float64).numpy()


# The byte


def test_all_codes_differ_and_are_odd_and_monotone() -> None:
    assert len({repr(value) for value in VALUES}) == 256
    assert all(low < high for low, high in pairwise(INTEGERS[ZERO:NEGATIVE]))
    np.testing.assert_array_equal(INTEGERS[NEGATIVE:], -INTEGERS[:NEGATIVE])
    assert INTEGERS[[ZERO, 1, ONE, NEGATIVE - 1]].tolist() == [0, 19, 2**13, 2**20]
    assert VALUES[ONE] == 1
    assert INTEGERS[NOTHING] == 0
    assert math.isnan(VALUES[NOTHING])


def test_magnitudes_are_the_nearest_to_eight_steps_an_octave() -> None:
    for code in range(1, NEGATIVE):
        assert abs(INTEGERS[code] - 2 ** ((33 + code) / 8)) <= 0.5
    assert codes.DIGEST == "0d07d86f1a7b4f047bb767c34641e17ed5a72acba13a57daf53e15a6bf05346b"


def test_decoding_and_encoding_changes_nothing() -> None:
    everything = np.arange(256)
    for threshold in (0.0, 0.5, uniform(256, "byte")):
        np.testing.assert_array_equal(encode(VALUES, threshold), everything)


@given(within)
def test_the_nearest_is_at_most_5_percent_off_and_none_is_nearer(value: float) -> None:
    error = abs(VALUES[encode(value)] - value)
    assert error <= 0.05 * abs(value)
    assert error == np.nanmin(np.abs(VALUES - value))


@given(anything, st.floats(0, 1, exclude_max=True))
def test_every_float_has_a_code_and_its_negative_the_opposite(value: float, threshold: float) -> None:
    code, opposite = encode([value, -value], threshold)
    if not math.isfinite(value):
        assert code == opposite == NOTHING
    else:
        assert VALUES[opposite] == -VALUES[code]
        assert abs(VALUES[code]) <= LARGEST
        assert VALUES[code] * np.sign(value) >= 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.floats(0, 1, exclude_max=True))
def test_larger_numbers_have_no_smaller_codes(values: list[float], threshold: float) -> None:
    assert (np.diff(INTEGERS[encode(sorted(values), threshold)]) >= 0).all()


def test_what_is_beyond_either_end_or_no_number() -> None:
    beyond = [1e308, -1e308, 129, LEAST * 0.51, LEAST * 0.49, -LEAST * 0.49, 5e-324, 0.0, -0.0]
    assert encode(beyond).tolist() == [127, 255, 127, 1, ZERO, ZERO, ZERO, ZERO, ZERO]
    assert encode([math.nan, math.inf, -math.inf]).tolist() == [NOTHING] * 3
    assert encode_sign([1e-30, -7, 0, -0.0, math.nan, -math.inf]).tolist() == [
        ONE,
        ONE | NEGATIVE,
        0,
        0,
        *[NOTHING] * 2,
    ]


@pytest.mark.parametrize("value", [0.4 * LEAST, LEAST * 1.05, -0.0123, 0.7, -1.04, 99.0])
def test_uniform_thresholds_round_without_bias(value: float) -> None:
    # One number in each of equal parts, so that what is left of chance is less than a part.
    count = 10_000
    threshold = (np.arange(count) + uniform(count, "rounding", value)) / count
    rounded = VALUES[encode(np.full(count, value), threshold)]
    assert len(np.unique(rounded)) == 2
    assert rounded.mean() == pytest.approx(value, rel=1e-3)
    assert VALUES[encode(np.full(100_000, value), uniform(100_000, value))].mean() == pytest.approx(value, rel=1e-2)


# Philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_numbers(counter: str, key: str, expected: str) -> None:
    low, high = (int(word, 16) for word in key.split())
    counters = np.array([[int(word, 16)] * 3 for word in counter.split()], dtype=np.uint64)
    for row in philox.words(high << 32 | low, counters):
        assert " ".join(f"{word:08x}" for word in row) == expected


def plain(origin: Origin, parameter: int) -> int:
    """The parameter's random byte, by the book, in Python's integers."""
    c = [parameter // 16, origin.sequence & WORD, origin.sequence >> 32, origin.peer]
    k = [origin.run & WORD, origin.run >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & WORD, a >> 32 ^ c[3] ^ k[1], a & WORD]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return c[parameter % 16 // 4] >> 8 * (parameter % 4) & 0xFF


# Directions


@settings(max_examples=50)
@given(origins, st.integers(0, LIMIT - 40), st.integers(0, 40))
def test_bytes_are_those_by_the_book(origin: Origin, start: int, count: int) -> None:
    assert random_bytes(origin, start, count).tolist() == [plain(origin, start + i) for i in range(count)]


@given(origins, st.integers(0, LIMIT // 16 - 1))
def test_an_origin_and_a_place_can_be_read_from_key_and_counter(origin: Origin, place: int) -> None:
    block, low, high, peer = origin.counters(place, place + 1)[:, 0].tolist()
    assert (block, Origin(origin.run, peer, high << 32 | low)) == (place, origin)


def test_a_million_messages_and_places_share_no_counter() -> None:
    draw = random.Random(0)
    small, large = [0, 1, 2, 10, 11, 2**31, WORD], [2**32, 2**32 + 1, 11 << 32, 2**63, LONG]
    chosen: dict[Origin, None] = {}
    while len(chosen) < 800:
        sequence = draw.choice([*small, *large, draw.getrandbits(64)])
        chosen[Origin(draw.choice(small + large), draw.choice(small), sequence)] = None
    counters = []
    for origin in chosen:
        rows = np.empty((1250, 6), dtype=np.uint32)
        first = draw.choice([0, 11, LIMIT // 16 - 1250])
        rows[:, :4] = origin.counters(first, first + 1250).T
        rows[:, 4:] = origin.run & WORD, origin.run >> 32
        counters.append(rows)
    found = np.concatenate(counters)
    assert len(found) >= 1_000_000
    assert len(np.unique(found.view("V24"))) == len(found)


@pytest.mark.parametrize("origin", [(2**64, 0, 0), (0, 2**32, 0), (0, 0, 2**64), (-1, 0, 0), (0, -1, 0), (0, 0, -1)])
def test_numbers_out_of_range_are_refused(origin: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="bits"):
        Origin(*origin)


def test_what_cannot_be_is_refused() -> None:
    origin = Origin(1, 2, 3)
    with pytest.raises(TypeError):
        Origin(1, 2, 3.5)  # type: ignore[arg-type]
    for start, count in ((-1, 1), (0, -1), (LIMIT, 1), (LIMIT - 1, 2)):
        with pytest.raises(ValueError, match="parameters"):
            random_bytes(origin, start, count)
    for probe in (-1, PROBES):
        with pytest.raises(ValueError, match="probe"):
            signs(random_bytes(origin, 0, 1), probe)
    sums = np.zeros(3, dtype=np.int32)
    for wrong in ([0] * 9, [2**30, -(2**30)], [2**31], [-(2**70)]):
        with pytest.raises(ValueError, match="integers"):
            accumulate(sums, [(origin, wrong)])
    with pytest.raises(TypeError):
        accumulate(sums, [(origin, [0.5])])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="int64"):
        accumulate(np.zeros(3, dtype=np.int16), [])
    assert not sums.any()


def test_signs_are_balanced_and_those_of_probes_places_and_messages_unrelated() -> None:
    size = 2**14
    z = [
        signs(random_bytes(origin, 0, size), probe).astype(np.float64)
        for origin in (Origin(7, 0, 0), Origin(7, 0, 1), Origin(7, 1, 0), Origin(8, 0, 0), Origin(7, 0, 2**32))
        for probe in range(PROBES)
    ]
    assert all(set(direction) == {-1, 1} for direction in z)
    z += [np.roll(direction, shift) for direction in z[:PROBES] for shift in (1, 4, 16)]
    related = np.corrcoef(z) - np.eye(len(z))
    assert np.abs(np.mean(z, axis=1)).max() < 5 / math.sqrt(size)
    assert np.abs(related).max() < 5 / math.sqrt(size)
    assert np.mean(related**2) * size == pytest.approx(1, abs=0.1)


@settings(max_examples=25)
@given(st.lists(st.tuples(origins, integers), max_size=3), st.integers(0, LIMIT - 40), st.sampled_from(["i4", "i8"]))
def test_sums_are_those_in_plain_integers(entries: list[tuple[Origin, list[int]]], start: int, kind: str) -> None:
    sums = np.arange(40, dtype=kind)
    accumulate(sums, entries, start)
    for i, total in enumerate(sums.tolist()):
        for origin, numbers in entries:
            byte = plain(origin, start + i)
            total -= sum(q if byte >> probe & 1 else -q for probe, q in enumerate(numbers))
        assert total == i


@pytest.mark.parametrize("kind", ["i4", "i8"])
def test_sums_know_no_order_blocks_or_types_and_can_be_undone(kind: str) -> None:
    size, draw = 2 * BLOCK + 12_345, random.Random(1)
    entries = [(Origin(5, i % 3, i), [draw.randrange(-(2**20), 2**20) for _ in range(1 + i % 8)]) for i in range(12)]
    sums = np.zeros(size, kind)
    accumulate(sums, entries)

    by_probe = np.zeros(size, dtype=np.int64)
    for origin, numbers in entries:
        for first, last in directions.blocks(size):
            drawn = random_bytes(origin, first, last - first)
            for probe, q in enumerate(numbers):
                by_probe[first:last] += q * signs(drawn, probe).astype(np.int64)
    np.testing.assert_array_equal(sums, by_probe)

    other = np.zeros(size, kind)
    draw.shuffle(entries)
    for first, last in ((100_001, size), (0, 7), (7, 100_001)):
        for entry in entries:
            accumulate(other[first:last], [entry], first)
    np.testing.assert_array_equal(sums, other)

    accumulate(other, [(origin, [-q for q in numbers]) for origin, numbers in entries[::7]])
    rest = np.zeros(size, kind)
    accumulate(rest, [entry for i, entry in enumerate(entries) if i % 7])
    np.testing.assert_array_equal(other, rest)


def test_what_a_byte_says_is_what_is_added() -> None:
    said, origin = encode([0.3, -2.0, math.nan]), Origin(1, 2, 3)
    sums = np.zeros(100, dtype=np.int64)
    accumulate(sums, [(origin, INTEGERS[said])])
    drawn = random_bytes(origin, 0, 100)
    expected = VALUES[said][0] * signs(drawn, 0) + VALUES[said][1] * signs(drawn, 1)
    np.testing.assert_array_equal(sums * UNIT, expected)
