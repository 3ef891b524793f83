"""The server's arithmetic over many uploads equals, to the bit, the same done one upload and one tensor at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedshare import tensors
from fedshare.payload import Payload
from fedshare.rounds import Schedule
from fedshare.rounds.influence import Watch, norm
from fedshare.rounds.steps import concluded
from fedshare.rules.matrix import updates_of
from fedshare.rules.rule import trimmed
from fedshare.strategies.fedavg import FedAvg

JOINED = tensors._JOINED
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and tensors.digest(a) == tensors.digest(b)


def drawn(seed: int, *shape: int, kind: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 9
    values[..., ::7] = -0.0  # whose sign a sum that starts from 0 would lose
    return values.to(kind)


@settings(deadline=None, max_examples=40)
@given(
    size=st.sampled_from([1, 9, 40_001]),
    kind=st.sampled_from(TYPES),
    layout=st.sampled_from(["apart", "rows", "transposed"]),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5),
)
def test_mean_is_summed_in_the_order_given(size: int, kind: torch.dtype, layout: str, weights: list[float]) -> None:
    matrix = drawn(size, len(weights), 2 * size, kind=kind)
    rows = [row.view(2, size) for row in matrix]
    if layout == "apart":
        rows = [row.clone() for row in rows]
    if layout == "transposed":
        rows = [row.clone().T for row in rows]
    whole = sum(weights)
    expected = rows[0] * (weights[0] / whole)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        expected.add_(row, alpha=weight / whole)
    assert same(tensors.mean([{"w": row} for row in rows], weights)["w"], expected)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 10, tensors._SMALL - 1, tensors._SMALL, JOINED]), min_size=1, max_size=12),
    kinds=st.lists(st.sampled_from(TYPES), min_size=1, max_size=3),
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    where=st.integers(0),
)
def test_one_number_that_is_not_finite_is_found(
    sizes: list[int], kinds: list[torch.dtype], bad: float, where: int
) -> None:
    values = [drawn(size, size, kind=kinds[place % len(kinds)]) for place, size in enumerate(sizes)]
    assert tensors.all_finite(values)
    places = [t for t in values if t.numel() and t.dtype != torch.int64]
    if places:
        tensor = places[where % len(places)]
        tensor[where % len(tensor)] = bad
        assert not tensors.all_finite(values)


@pytest.mark.parametrize("clients", [1, 2, 5, 12, 50])
@pytest.mark.parametrize("columns", [1, 30, 2**13 + 5])
def test_trimmed_mean_equals_that_of_sorted_columns(clients: int, columns: int) -> None:
    updates = drawn(clients, clients, columns).round()  # with ties, and zeros of both signs
    updates[0, -1] = math.inf
    before = updates.clone()
    for f in {0, (clients - 1) // 3, (clients - 1) // 2}:
        expected = [
            block.sort(dim=0).values[f : clients - f].double().mean(dim=0).float()
            for block in updates.split(2**13, dim=1)
        ]
        assert same(trimmed(updates, f), torch.cat(expected))
    assert same(updates, before)


def test_updates_are_differences_of_the_floating_point_tensors() -> None:
    def model(seed: int) -> tensors.Tensors:
        half, count = drawn(seed, 5, kind=torch.bfloat16), torch.tensor(seed)
        return {"w": drawn(seed, 3, 4), "count": count, "half": half, "bias": drawn(seed, 4, kind=torch.float64)}

    start, models = model(0), [model(1), dict(reversed(model(2).items()))]
    expected = [
        torch.cat([(m[name].float() - start[name].float()).flatten() for name in ("w", "half", "bias")]) for m in models
    ]
    assert same(updates_of(models, start), torch.stack(expected))
    assert updates_of(models, {"count": torch.tensor(0)}).shape == (2, 0)


def test_cosines_are_those_of_each_pair() -> None:
    def vectors(seed: int) -> tensors.Tensors:
        return {"w": drawn(seed, 100, 7), "bias": drawn(seed + 99, 101)}

    items, reference = [vectors(1), vectors(2), tensors.zeros_like(vectors(3))], dict(reversed(vectors(4).items()))
    dots = [(tensors.dot(a, reference), tensors.dot(a, a) * tensors.dot(reference, reference)) for a in items]
    assert tensors.cosines(items, reference) == [inner / math.sqrt(s) if s else 0.0 for inner, s in dots]


def test_norms_of_many_updates_are_those_of_each() -> None:
    """Whether like tensors are treated together or not: other starts, names and shapes, and none at all."""
    common, other = drawn(0, 40, 50), drawn(1, 40, 50)
    downloads = {c: Payload({"params": {"w": other if c == 3 else common, "b": drawn(2, 3)}}) for c in range(60)}
    uploads = {
        c: Payload({"params": {"w": drawn(c, 40, 50), "b": drawn(c, 4 if c == 5 else 3), "n": torch.tensor(c)}})
        for c in range(60)
    }
    uploads[7].tensors["more"] = {"z": drawn(7, 6, kind=torch.complex64), "scalar": torch.tensor(2.5)}

    def one(client: int) -> float:
        found = list[Tensor]()
        for group, named in uploads[client].tensors.items():
            for name, tensor in named.items():
                wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
                sent = downloads[client].tensors.get(group, {}).get(name)
                if name != "n":
                    found.append(wide - sent if sent is not None and sent.shape == tensor.shape else wide)
        return math.hypot(*(float(torch.linalg.vector_norm(change)) for change in found))

    norms = {client: one(client) for client in uploads}
    assert {client: norm(upload, downloads[client]) for client, upload in uploads.items()} == norms
    far = max(norms, key=lambda client: norms[client])
    middle = sorted(norms.values())[29]
    assert Watch(0.999 * norms[far] / middle).outliers(uploads, downloads).keys() == {far}


def test_not_finite_uploads_are_named_before_their_other_faults() -> None:
    good = Payload({"params": {"w": torch.ones(4)}}, {"examples": 2})
    uploads = dict.fromkeys(range(4), good)
    uploads[1] = Payload({"params": {"w": torch.tensor([1, math.nan, 1, 1])}}, {"examples": -1})
    downloads, schedule = dict.fromkeys(range(5), good), Schedule(rounds=1, seed=0)
    state, used, dropped, _ = concluded(
        FedAvg(), {"params": {"w": torch.zeros(4)}}, 1, uploads, downloads, {}, schedule, Watch()
    )
    assert list(used) == [0, 2, 3]
    assert dropped == {1: "params: w holds NaN or infinity", 4: "no answer"}
    assert state["params"]["w"].tolist() == [1, 1, 1, 1]
