"""Tensors, seeds, states, payloads, the digest chain: the small things that everything stands on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import world
from fedshare import seeds, tensors
from fedshare.payload import Payload, evaluation_flaw, flaw
from fedshare.rounds import chain
from fedshare.state import State, digests, pack, unpack
from fedshare.tasks import Classification


def test_arithmetic_by_hand() -> None:
    a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([10.0, 20.0])}
    assert tensors.add(a, b, alpha=0.5)["w"].tolist() == [6.0, 12.0]
    assert tensors.subtract(b, a)["w"].tolist() == [9.0, 18.0]
    assert tensors.scale(a, 3)["w"].tolist() == [3.0, 6.0]
    assert tensors.mean([a, b])["w"].tolist() == [5.5, 11.0]
    assert tensors.mean([a, b], [3, 1])["w"].tolist() == [3.25, 6.5]
    assert a["w"].tolist() == [1.0, 2.0]


def test_arithmetic_refuses_other_names_and_nothing() -> None:
    with pytest.raises(KeyError, match="v"):
        tensors.add({"w": torch.ones(1)}, {"v": torch.ones(1)})
    with pytest.raises(ValueError, match="the mean of nothing"):
        tensors.mean([])
    with pytest.raises(ValueError, match="1 items but 2 weights"):
        tensors.mean([{}], [1, 2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen_in_any_type(dtype: torch.dtype, bad: float) -> None:
    values = torch.zeros(5, dtype=dtype)
    assert tensors.all_finite([values])
    values[3] = bad
    assert not tensors.all_finite([values])


def test_digest_sees_every_bit_the_type_and_the_shape() -> None:
    plain = torch.arange(6, dtype=torch.float32)
    flipped = plain.clone()
    flipped.view(torch.int32)[3] ^= 1
    others = [flipped, plain.view(2, 3), plain.view(torch.int32), plain.double(), plain.to(torch.bfloat16)]
    assert len({tensors.digest(t) for t in [plain, *others]}) == 6
    assert tensors.digest(plain.view(2, 3).T.contiguous().T) == tensors.digest(plain.view(2, 3)), "strides do not count"
    assert tensors.digest(torch.tensor(math.nan)) == tensors.digest(torch.tensor(math.nan))
    assert tensors.digest(torch.tensor(0.0)) != tensors.digest(torch.tensor(-0.0))


def test_seeds_are_named_streams() -> None:
    def draw(*key: seeds.Key) -> list[float]:
        return torch.rand(4, generator=seeds.generator(*key)).tolist()

    assert draw(0, "batches", 1, 2) == draw(0, "batches", 1, 2)
    keys: list[tuple[seeds.Key, ...]] = [(0, "a", 1, 2), (0, "a", 12), (0, "a", 2, 1), (0, "b", 1, 2), ("0", "a", 1, 2)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
    with pytest.raises(TypeError, match="int64"):
        seeds.number(torch.tensor([1]).numpy()[0])


def test_seeds_keep_their_numbers() -> None:
    # Golden: were they to move, no old run could be repeated. torch's moved once, in 0.2.
    assert seeds.number(0, "batches", 1, 2) == 3761005510219592756
    assert torch.randperm(6, generator=seeds.generator(0, "golden")).tolist() == [1, 3, 5, 4, 0, 2]
    assert seeds.numpy_generator(0, "golden").permutation(6).tolist() == [4, 2, 5, 1, 3, 0]
    with seeds.earlier():
        assert torch.randperm(6, generator=seeds.generator(0, "golden")).tolist() == [2, 1, 0, 3, 4, 5]


def test_a_scope_is_a_stream_and_leaves_no_trace() -> None:
    torch_state = torch.get_rng_state()
    with seeds.scope(0, "model"):
        first = torch.rand(3)
    with seeds.scope(0, "model"):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), torch_state)


TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
tensor = st.builds(
    lambda dtype, shape: torch.zeros(shape).to(dtype), st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=3)
)
keys = st.one_of(st.text(max_size=5), st.integers(-9, 9))
memory = st.recursive(
    st.one_of(leaf, tensor),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.dictionaries(keys, memory, max_size=4))
def test_any_state_packs_and_unpacks_to_the_same_bits(state: State) -> None:
    again = unpack(pack(state))
    assert list(again) == list(state)
    assert digests(again) == digests(state)


def test_a_state_keeps_order_int_keys_and_shared_tensors() -> None:
    shared = torch.arange(4.0)
    state: State = {"b": {2: shared, 1: shared[:2]}, "a": [1, "x", None, -0.0, math.nan, True, shared]}
    again = unpack(pack(state))
    assert list(again) == ["b", "a"]
    assert list(again["b"]) == [2, 1]
    assert digests(again) == digests(state)
    assert type(again["a"][5]) is bool


def test_aliases_pack() -> None:
    whole = torch.arange(4.0)
    state: State = {"a": whole, "b": whole.detach(), "c": whole.view(2, 2), "d": whole[1:]}
    assert digests(unpack(pack(state))) == digests(state)


def test_no_two_leaves_share_a_path() -> None:
    w = torch.ones(1)
    states: list[State] = [{1: w, "1": w}, {"a": {"b": w}, "a/b": w}, {"x": [w], "y": {0: w}}, {"#1": w, 1: w}]
    assert [len(digests(state)) for state in states] == [2, 2, 2, 2]
    alike: list[State] = [{"x": [w]}, {"x": {0: w}}, {"x": {"0": w}}, {"x": {"@0": w}}, {"x/@0": w}]
    assert len({tuple(digests(state)) for state in alike}) == len(alike)


def test_a_state_is_plain_data() -> None:
    with pytest.raises(TypeError, match=r"state/model/0: a state cannot hold a tuple"):
        pack({"model": [(1, 2)]})
    with pytest.raises(TypeError, match="a key of a state is a str or an int"):
        pack({1.5: 0})  # type: ignore[dict-item]


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, b"\xff" * 40, b"{}"])
def test_other_bytes_are_no_state(damage: bytes) -> None:
    with pytest.raises(ValueError, match="not a packed state"):
        unpack(damage)


def test_a_truncated_state_is_none() -> None:
    data = pack({"w": torch.ones(100)})
    for length in range(0, len(data), 37):
        with pytest.raises(ValueError, match="not a packed state"):
            unpack(data[:length])


EXPECTED = {"params": {"w": torch.zeros(2, 3), "n": torch.zeros(2, dtype=torch.int64)}}
GOOD = {"w": torch.ones(2, 3), "n": torch.ones(2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("group", "metrics", "reason"),
    [
        (GOOD, {"examples": 5.0, "train_loss": 0.5}, None),
        (GOOD | {"w": torch.ones(1, 3)}, {"examples": 5.0}, r"params: w has shape [1, 3], not [2, 3]"),
        (GOOD | {"w": GOOD["w"].double()}, {"examples": 5.0}, "params: w is torch.float64, not torch.float32"),
        (GOOD | {"w": torch.full((2, 3), -math.inf)}, {"examples": 5.0}, "params: w holds NaN or infinity"),
        ({"w": GOOD["w"]}, {"examples": 5.0}, "params: lacks n"),
        (GOOD | dict.fromkeys("ab", GOOD["w"]), {"examples": 5.0}, "params: has unknown a, has unknown b"),
        (GOOD, {"examples": 11.0}, "claims 11 examples, not 1 to 10"),
        (GOOD, {}, "claims no number of examples, not 1 to 10"),
        (GOOD, {"examples": 5.0, "train_loss": math.inf}, "metric train_loss is inf"),
        (GOOD, {"examples": "many"}, "metric examples is many"),
        (GOOD, {"examples": 10**400}, f"metric examples is 1{'0' * 39}"),
        (GOOD, {"examples": 2.5}, "claims 2.5 examples, not 1 to 10"),
        (GOOD | {"w": GOOD["w"].to_sparse()}, {"examples": 5.0}, "params: w is a Tensor, not a dense tensor"),
        (GOOD | {"w": [1.0]}, {"examples": 5.0}, "params: w is a list, not a dense tensor"),
        (None, {"examples": 5.0}, "params is a NoneType, not named tensors"),
    ],
)  # fmt: skip
def test_flaws(group: tensors.Tensors, metrics: dict[str, float], reason: str | None) -> None:
    assert flaw(Payload({"params": group}, metrics), EXPECTED, max_examples=10) == reason


SUMS = world.tested(0.5, 1.0, 4)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"sums": SUMS}, None),
        ({"sums": SUMS, "validation": SUMS}, None),
        ({"sums": SUMS | {"loss": torch.tensor(math.nan, dtype=torch.float64)}}, None),  # a finding
        ({"sums": SUMS | dict.fromkeys(("examples", "correct"), torch.tensor(0))}, None),
        ({}, "groups: lacks sums"),
        ({"sums": SUMS, "more": SUMS}, "groups: has unknown more"),
        ({"sums": {}}, "sums: lacks correct, lacks examples, lacks loss and 1 more"),
        ({"sums": None}, "sums is a NoneType, not named tensors"),
        ({"sums": SUMS | {"examples": torch.tensor(11)}}, "claims 11 examples, not 0 to 10"),
        ({"sums": SUMS | {"examples": torch.tensor(-1)}}, "claims -1 examples, not 0 to 10"),
        ({"sums": SUMS | {"examples": torch.tensor(4.0)}}, "sums: examples is torch.float32, not torch.int64"),
        ({"sums": SUMS | {"correct": torch.tensor(5)}}, "sums: correct is 5, not 0 to 4"),
        ({"sums": SUMS | {"correct": torch.tensor([2])}}, "sums: correct has shape [1], not []"),
        ({"sums": SUMS | {"correct": 2}}, "sums: correct is a int, not a dense tensor"),
        ({"sums": SUMS, "validation": SUMS | {"correct": torch.tensor(-1)}}, "validation: correct is -1, not 0 to 4"),
    ],
)
def test_flaws_of_an_evaluation(answer: dict[str, tensors.Tensors], reason: str | None) -> None:
    assert evaluation_flaw(Payload(answer), Classification().zeros(), max_examples=10) == reason


def test_payload_bytes() -> None:
    assert Payload({"params": GOOD}).nbytes == 6 * 4 + 2 * 8


def link(previous: str, round: int, server: dict[str, str], clients: dict[int, dict[str, str]]) -> chain.Link:
    return chain.Link.extend(previous, round, server, clients)


def test_the_chain_covers_the_past_the_server_and_the_clients() -> None:
    first = link(chain.START, 1, {"params/w": "a"}, {3: {"params/w": "b"}})
    assert first.follows(chain.START)
    assert not first.follows("another past")
    changed = [
        link("x", 1, {"params/w": "a"}, {3: {"params/w": "b"}}),
        link(chain.START, 2, {"params/w": "a"}, {3: {"params/w": "b"}}),
        link(chain.START, 1, {"params/w": "c"}, {3: {"params/w": "b"}}),
        link(chain.START, 1, {"params/w": "a"}, {3: {"params/w": "c"}}),
        link(chain.START, 1, {"params/w": "a"}, {5: {"params/w": "b"}}),
        link(chain.START, 1, {"params/w": "a"}, {3: {"params/w": "b"}, 4: {}}),
    ]
    assert len({first.digest, *(other.digest for other in changed)}) == 7


def test_the_first_difference_is_named() -> None:
    a = [link(chain.START, 1, {"w": "a"}, {})]
    a.append(link(a[0].digest, 2, {"w": "b"}, {10: {"w": "x"}, 9: {"v": "y", "w": "y"}}))
    other = link(a[0].digest, 2, {"w": "c"}, {10: {"w": "z"}, 9: {"v": "y", "w": "z"}})
    assert chain.first_difference(a, a) is None
    assert chain.first_difference(a, a[:1]) is None
    assert chain.first_difference(a, [a[0], other]) == "round 2: client 9: w"
    server = link(a[0].digest, 2, {"w": "c"}, {10: {"w": "x"}, 9: {"v": "y", "w": "y"}})
    assert chain.first_difference(a, [a[0], server]) == "round 2: server: w"
