"""Directions on tensors: numpy, numba and torch give the same bits, in any blocks and on any threads."""

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from fedshare import directions, seeds
from fedshare.directions import BLOCK, PROBES, SIGNS, Entry, Origin, accelerator, perturb, random_bytes
from fedshare.directions.perturb import accumulate, displace, draw, settle
from fedshare.machine import threads
from optional import extra
from world import PATIENCE

SIZE = 4 * BLOCK + 12_345  # more than what one thread does alone
SMALL = 30_001
CPU = torch.device("cpu")
ORIGIN = Origin(2**63 + 12_345, 77, 2**40 + 5)
ENTRIES: list[Entry] = [(Origin(5 + i % 2, i % 3, 2**31 * i), [7, -(2**20), 2**18, i][: 1 + i % 4]) for i in range(5)]
COEFFICIENTS = [
    [0.1],
    [0, 0.1],
    [0.1, -0.3],
    [0, 0, 0.2, 0.7],
    [0] * 7 + [0.3],
    [0] * 6 + [0.3, 0.4],
    [0.1, 0, 0.5],
    [0.1] * 8,
]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(params=["numpy", "numba"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numba":
        extra("numba")
    monkeypatch.setenv("FEDSHARE_KERNELS", request.param)
    assert (directions.compiled(SMALL) is not None) == (request.param == "numba")
    return request.param


def random(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=seeds.generator("perturb", size), dtype=torch.float64).to(dtype)


@contextmanager
def plain_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("FEDSHARE_KERNELS", "numpy")
        yield


def plainly(vector: Tensor, drawn: Tensor, coefficients: list[float]) -> Tensor:
    """The probes' signs, one after the other, in the type in which they are summed."""
    wide = torch.float64 if vector.dtype == torch.float64 else torch.float32
    total = torch.zeros(len(vector), dtype=wide)
    for probe, coefficient in enumerate(coefficients):
        total += torch.from_numpy(directions.signs(drawn.numpy(), probe)).to(wide) * torch.tensor(
            coefficient, dtype=wide
        )
    return (vector.to(wide) + total).to(vector.dtype)


def test_bytes_are_the_same_in_any_blocks_and_on_any_threads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with threads.one_thread():
        drawn = draw(ORIGIN, SIZE, "cpu")
    assert drawn.dtype == torch.uint8
    with threads.threads(2):
        assert torch.equal(draw(ORIGIN, SIZE, "cpu"), drawn)
    with plain_numpy(monkeypatch):
        for start, count in ((0, 40), (16, 16), (BLOCK - 5, 40), (SIZE - 9, 9), (77, SMALL), (5, 0)):
            expected = random_bytes(ORIGIN, start, count)
            np.testing.assert_array_equal(drawn[start : start + count].numpy(), expected)
    np.testing.assert_array_equal(random_bytes(ORIGIN, 77, SMALL), drawn[77 : 77 + SMALL].numpy())
    end = directions.LIMIT
    np.testing.assert_array_equal(random_bytes(ORIGIN, end - SMALL, SMALL)[-3:], random_bytes(ORIGIN, end - 3, 3))


def test_a_device_draws_and_sums_as_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "CHUNK", 2**12)
    drawn = accelerator.draw(ORIGIN, SMALL, CPU)
    np.testing.assert_array_equal(drawn.numpy(), random_bytes(ORIGIN, 0, SMALL))
    for dtype, name in ((torch.int32, "i4"), (torch.int64, "i8")):
        sums, expected = torch.arange(SMALL, dtype=dtype), torch.arange(SMALL, dtype=dtype)
        tables = [(origin, directions.byte_table(numbers, np.dtype(name))) for origin, numbers in ENTRIES]
        accelerator.accumulate(sums, tables, 12_345)
        accumulate(expected, ENTRIES, 12_345)
        assert torch.equal(sums, expected)
    for dtype in TYPES:
        vector = random(SMALL, dtype)
        expected = plainly(vector, drawn, [0.1, -0.2, 0.3])
        numbers = np.array([0.1, -0.2, 0.3], dtype=np.float64 if dtype == torch.float64 else np.float32)
        accelerator.displace(vector, drawn, torch.from_numpy(perturb._table(numbers)))
        assert torch.equal(vector, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_sums_are_the_same_in_any_blocks_and_on_any_threads(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = torch.zeros(SIZE, dtype=dtype)
    with threads.threads(2):
        accumulate(sums, ENTRIES, 5)
    with plain_numpy(monkeypatch), threads.one_thread():
        expected = torch.zeros(SIZE, dtype=dtype)
        for first, last in ((100_001, SIZE), (0, 7), (7, 100_001)):
            for entry in ENTRIES:
                accumulate(expected[first:last], [entry], first + 5)
    assert torch.equal(sums, expected)
    accumulate(sums, [(origin, [-number for number in numbers]) for origin, numbers in ENTRIES], 5)
    assert not sums.any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
def test_a_vector_is_displaced_by_the_plain_formula(kind: str, dtype: torch.dtype, coefficients: list[float]) -> None:
    drawn = draw(ORIGIN, SMALL, "cpu")
    for part in (slice(None), slice(1, SMALL - 3), slice(0, 3), slice(0, 0)):
        vector = random(SMALL, dtype)[part]
        expected = plainly(vector, drawn[part], coefficients)
        displace(vector, drawn[part], coefficients)
        assert torch.equal(vector, expected)


def test_displacing_knows_no_threads_and_no_gradients(kind: str) -> None:
    drawn, found = draw(ORIGIN, SIZE, "cpu"), []
    for count in (1, 2):
        vector = random(SIZE).requires_grad_()
        with threads.threads(count):
            displace(vector, drawn, [0, 0.1, -0.1])
        found.append(vector.detach())
    assert torch.equal(*found)
    before = found[0].clone()
    for nothing in ([], [0.0] * 8):
        displace(found[0], drawn, nothing)
    assert torch.equal(found[0], before)
    apart = torch.zeros(2 * SMALL)
    displace(apart[::2], drawn[: 2 * SMALL : 2], [1.0])
    assert not apart[1::2].any()
    assert torch.equal(apart[::2], plainly(torch.zeros(SMALL), drawn[: 2 * SMALL : 2].contiguous(), [1.0]))


def test_up_down_and_back_is_close_and_one_pass_does_two(kind: str) -> None:
    drawn, start, eps = draw(ORIGIN, SMALL, "cpu"), random(SMALL), 1e-3
    vector = start.clone()
    displace(vector, drawn, [eps])
    displace(vector, drawn, [-2 * eps])
    displace(vector, drawn, [eps, eps])
    displace(vector, drawn, [0, -eps])
    assert (vector - start).abs().max() <= 4 * 2**-24 * 8


@pytest.mark.parametrize("dtype", TYPES)
def test_settling_rounds_once(dtype: torch.dtype) -> None:
    sums = torch.randint(-(2**30), 2**30, (500,), generator=seeds.generator("sums"))
    initial, vector = random(500, dtype), torch.zeros(500, dtype=dtype)
    for fraction in (0, 13, 31, 63):
        settle(vector, initial, sums.int(), fraction)
        for value, from_, number in zip(vector.tolist(), initial.tolist(), sums.tolist(), strict=True):
            assert value == once(from_ + float(Fraction(number, 2**fraction)), dtype)
        wide = torch.zeros_like(vector)
        settle(wide, initial, sums, fraction)
        assert torch.equal(wide, vector)


def once(exact: float, dtype: torch.dtype) -> float:
    """`exact`, rounded by integers: to the nearest, and half-way to an even one."""
    if dtype == torch.float64 or not exact:
        return exact
    digits, least = {torch.float32: (24, -149), torch.float16: (11, -24), torch.bfloat16: (8, -133)}[dtype]
    unit = max(math.frexp(exact)[1] - digits, least)
    rounded = float(round(Fraction(exact) / Fraction(2) ** unit) * Fraction(2) ** unit)
    return math.copysign(math.inf, exact) if abs(rounded) > torch.finfo(dtype).max else rounded


def test_settling_rounds_what_torch_rounds_twice() -> None:
    # One and a half units of bfloat16 above 1, and a bit that float32 drops.
    vector, bits = torch.zeros(1, dtype=torch.bfloat16), torch.tensor([2**32 // 256 + 1])
    settle(vector, torch.ones(1), bits, 32)
    assert vector.item() == 1 + 2**-7
    settle(vector, torch.ones(1), bits - 2, 32)
    assert vector.item() == 1


def test_settling_knows_no_threads() -> None:
    sums, found = torch.zeros(SIZE, dtype=torch.int32), []
    accumulate(sums, ENTRIES)
    for count in (1, 2):
        vector = torch.empty(SIZE)
        with threads.threads(count):
            settle(vector, random(SIZE), sums, 20)
        found.append(vector)
    assert torch.equal(*found)
    assert torch.equal(found[0], (random(SIZE).double() + sums.double() / 2**20).float())


def test_what_cannot_be_is_refused() -> None:
    vector, drawn, sums = torch.zeros(8), torch.zeros(8, dtype=torch.uint8), torch.zeros(8, dtype=torch.int32)
    wrong: list[tuple[type[Exception], Callable[[], object]]] = [
        (ValueError, lambda: draw(ORIGIN, -1, "cpu")),
        (TypeError, lambda: displace(sums, drawn, [1.0])),
        (TypeError, lambda: displace(vector.view(2, 4), drawn.view(2, 4), [1.0])),
        (ValueError, lambda: displace(vector, drawn[:7], [1.0])),
        (ValueError, lambda: displace(vector, drawn.int(), [1.0])),
        (ValueError, lambda: displace(vector, drawn, [0.0] * (PROBES + 1))),
        (TypeError, lambda: accumulate(vector, [])),
        (TypeError, lambda: accumulate(sums.view(2, 4), [])),
        (ValueError, lambda: accumulate(sums, [], -1)),
        (ValueError, lambda: accumulate(sums, [(ORIGIN, [2**31])])),
        (ValueError, lambda: settle(vector, vector, sums, -1)),
        (ValueError, lambda: settle(vector, vector, vector, 1)),
        (ValueError, lambda: settle(vector, vector[:7], sums, 1)),
    ]
    for error, call in wrong:
        with pytest.raises(error):
            call()
    assert not vector.any()
    assert not sums.any()


def test_a_byte_stands_for_signs() -> None:
    table = perturb._table(np.array([1.0, 2.0], dtype=np.float32))
    np.testing.assert_array_equal(table, SIGNS[0] + 2.0 * SIGNS[1])


PROGRAM = """
import hashlib, torch
from fedshare.directions import Origin
from fedshare.directions.perturb import accumulate, displace, draw, settle
sums, vector = torch.zeros(300_001, dtype=torch.int32), (torch.arange(300_001) - 150_000) / 2**17
accumulate(sums, [(Origin(5, i, i), [7 * i, -(2**20), 2**18]) for i in range(5)], 3)
settle(vector, vector.clone(), sums, 20)
displace(vector, draw(Origin(5, 0, 0), len(vector), "cpu"), [0.1, -0.1])
print(hashlib.sha256(vector.numpy().tobytes() + sums.numpy().tobytes()).hexdigest())
"""


@pytest.mark.process
def test_machines_of_all_kinds_have_the_same_bits(kind: str, one_without_simd: str) -> None:
    found: list[str] = []
    exec(PROGRAM, {"print": found.append})
    assert found == [one_without_simd]
    assert len(one_without_simd) == 2 * hashlib.sha256().digest_size


@pytest.fixture(scope="module")
def one_without_simd() -> str:
    disabled = {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": features(), "FEDSHARE_KERNELS": "numpy"}
    command, environ = [sys.executable, "-c", PROGRAM], os.environ | disabled
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout.strip()


def features() -> str:
    """What numpy would choose its loops by on this processor."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
