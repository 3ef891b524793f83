"""Random streams: as many as there are keys, each good, and torch's state laid out as it is taken to be."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fedshare import seeds
from fedshare.errors import UserError

Keys = list[tuple[seeds.Key, ...]]

ROUNDS, CLIENTS = 1000, 120
BATCHES: Keys = [(0, "batches", round, client) for round in range(ROUNDS) for client in range(CLIENTS)]
KINDS = {
    "rounds and clients": BATCHES,
    "seeds": [(seed, "model") for seed in range(100_000)],
    "one client's rounds": [(7, "train", round, 3) for round in range(100_000)],
}


def low(keys: Keys) -> list[int]:
    return [seeds.number(*key) & 0xFFFFFFFF for key in keys]


def of_generator(*key: seeds.Key) -> tuple[float, ...]:
    return tuple(torch.rand(2, generator=seeds.generator(*key), dtype=torch.float64).tolist())


def of_scope(*key: seeds.Key) -> tuple[float, ...]:
    with seeds.scope(*key):
        return tuple(torch.rand(2, dtype=torch.float64).tolist())


def of_numpy(*key: seeds.Key) -> tuple[float, ...]:
    return tuple(seeds.numpy_generator(*key).random(2).tolist())


Draw = Callable[..., tuple[float, ...]]
DRAWS = [of_generator, of_scope, of_numpy]


@pytest.mark.long
@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS.keys())
def test_all_keys_have_streams_of_their_own(keys: Keys) -> None:
    assert len({of_generator(*key) for key in keys}) == len(keys) >= 100_000


@pytest.mark.parametrize("draw", DRAWS)
def test_keys_that_are_equal_in_32_bits_have_two_streams(draw: Draw) -> None:
    seen, pairs = dict[int, tuple[seeds.Key, ...]](), Keys()
    for key, bits in zip(BATCHES, low(BATCHES), strict=True):
        if bits in seen:
            pairs += [seen[bits], key]
        seen[bits] = key
    assert len(pairs) >= 2, "which torch's own seeding would give one stream"
    assert len({draw(*key) for key in pairs}) == len(pairs)
    with seeds.earlier():
        assert (len({draw(*key) for key in pairs}) == len(pairs)) == (draw is of_numpy), "as in fedshare 0.1"


@pytest.mark.parametrize("draw", DRAWS)
def test_the_same_key_is_the_same_stream(draw: Draw) -> None:
    keys = [(0, "a"), ("0", "a"), (0.0, "a"), (0, "a", 1, 2), (0, "a", 12), (0, "a", 2, 1), (-1,), (2**70,), ("é",)]
    first = [draw(*key) for key in keys]
    assert [draw(*key) for key in keys] == first
    assert len(set(first)) == len(keys)


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """The first 64 numbers of many streams whose keys are neighbours."""
    return torch.stack([torch.rand(64, generator=seeds.generator(0, "train", *key)) for key in pairs(200, 50)])


def pairs(rounds: int, clients: int) -> Iterator[tuple[int, int]]:
    return itertools.product(range(rounds), range(clients))


@pytest.mark.parametrize("position", [0, 1, 63])
def test_across_streams_numbers_are_uniform(drawn: Tensor, position: int) -> None:
    column = drawn[:, position].double().sort().values
    expected = torch.arange(1, len(column) + 1) / len(column)
    # Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) one time in a thousand.
    assert float((column - expected).abs().max()) < 1.95 / len(column) ** 0.5


@pytest.mark.parametrize("apart", [1, 50])  # the next client's stream, and the same one's of the next round
def test_streams_are_not_correlated(drawn: Tensor, apart: int) -> None:
    a, b = drawn[:-apart].double() - 0.5, drawn[apart:].double() - 0.5
    correlation = (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()
    assert float(correlation.abs().max()) < 4.5 / len(a) ** 0.5, "of 64 positions"
    assert abs(float((a * b).mean()) * 12) < 4.5 / a.numel() ** 0.5, "of all together"


def test_every_bit_of_the_state_is_as_often_0_as_1() -> None:
    states = np.stack([seeds.generator(0, "bits", i).get_state().numpy()[24 : 24 + 8 * 624] for i in range(2000)])
    words = states.view("<u8").astype("<u4")
    ones = np.unpackbits(words.view(np.uint8), axis=1).mean(0)
    assert abs(ones - 0.5).max() < 6 / (2 * len(states) ** 0.5), "of 19,968 bits"


def test_normal_numbers_and_orders_are_sound() -> None:
    normal = torch.randn(100_000, generator=seeds.generator(0, "normal"), dtype=torch.float64)
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    firsts = torch.tensor([int(torch.randperm(5, generator=seeds.generator(0, "order", i))[0]) for i in range(5000)])
    assert (torch.bincount(firsts, minlength=5) - 1000).abs().max() < 150


def test_a_scope_is_its_generator_and_puts_all_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    with seeds.scope(0, "model"):
        assert torch.equal(torch.randn(7), torch.randn(7, generator=seeds.generator(0, "model")))
        with seeds.scope(0, "peft"):
            inner = torch.rand(3)
        assert torch.equal(inner, torch.rand(3, generator=seeds.generator(0, "peft")))
        with pytest.raises(RuntimeError, match="stop"), seeds.scope(1):
            raise RuntimeError("stop")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("key", [(0,), (3, "model"), (1, "train", 2, 3)])
def test_a_stream_says_what_it_began_with(key: tuple[seeds.Key, ...]) -> None:
    assert seeds.generator(*key).initial_seed() == seeds.number(*key)
    with seeds.scope(*key):
        assert torch.initial_seed() == seeds.number(*key)


@pytest.mark.parametrize("key", [(0, "batches", 1, 2), (0, "golden"), ("check",)])
def test_the_streams_of_before_are_there_for_the_folders_of_before(key: tuple[seeds.Key, ...]) -> None:
    theirs = torch.rand(5, generator=torch.Generator().manual_seed(seeds.number(*key)))
    with seeds.earlier():
        assert torch.equal(torch.rand(5, generator=seeds.generator(*key)), theirs)
        with seeds.scope(*key):
            assert torch.equal(torch.rand(5), theirs)
    assert not torch.equal(torch.rand(5, generator=seeds.generator(*key)), theirs)


def shorter(state: Tensor) -> Tensor:
    return state[:-16]  # torch 2.6 takes one that is shorter by 8, of older versions


def shifted(state: Tensor) -> Tensor:
    return state.roll(8)


def reversed_(state: Tensor) -> Tensor:
    return torch.cat([state[:24], state[24:5016].view(-1, 8).flip(0).flatten(), state[5016:]])


@pytest.mark.parametrize("another", [shorter, shifted, reversed_])
def test_another_layout_of_torchs_state_is_said_in_one_line(
    another: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Another(torch.Generator):
        def get_state(self) -> Tensor:
            return another(super().get_state())

        def set_state(self, state: Tensor) -> "Another":
            back = {shifted: lambda s: s.roll(-8), reversed_: reversed_}.get(another, lambda s: s)
            super().set_state(back(state))
            return self

    seeds._blank.cache_clear()
    monkeypatch.setattr(torch, "Generator", Another)
    try:
        with pytest.raises(UserError, match=r"^torch \S+: its CPU generator is not that of .*: install one of those$"):
            seeds.generator(0)
    finally:
        seeds._blank.cache_clear()
