"""The batching engine on other devices: plans that are recorded, memory that ends, workers on several GPUs.

A machine without a GPU plays the recording on the CPU, and what is left to a GPU alone is skipped there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_engine import OPTIMIZERS, build, run, tensors
from torch import Tensor

import world
from fedshare import seeds
from fedshare.engine import batched
from fedshare.engine.batched import Batched, group_size
from fedshare.engine.single import Make, Single
from fedshare.machine import devices
from fedshare.simulation import choice
from fedshare.simulation.effort import Effort
from fedshare.training.scratch import Scratch

NAN = float("nan")


class OnCpu:
    """`Kernels` on the CPU, with what is hard about a CUDA graph's.

    Results are where they were recorded, only a replay computes them, and it destroys those of others in its pool.
    """

    def __init__(self, pool: "list[OnCpu]") -> None:
        pool.append(self)
        self.pool, self.replays = pool, 0
        self.results: list[Tensor] = []

    def record(self, work: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        self.work, self.results = work, [result.clone() for result in work()]
        self.spoil()
        return self.results

    def spoil(self) -> None:
        for result in self.results:
            if result.is_floating_point():
                result.fill_(NAN)

    def replay(self) -> None:
        self.replays += 1
        for other in self.pool:
            if other is not self:
                other.spoil()
        for own, new in zip(self.results, self.work(), strict=True):
            own.copy_(new)


def links(name: str, engine: Make, **options: object) -> list[object]:
    return [done.link for done in run(name, engine, **options)[0]]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("name", ["fedavg", "ditto", "fedcac"])
def test_recorded_plans_give_the_same_bits(name: str, optimizer: str) -> None:
    pool: list[OnCpu] = []
    options = {"optimizer": OPTIMIZERS[optimizer], "last_batch": "keep"}
    recorded = partial(Batched, start=lambda device: partial(OnCpu, pool))
    assert links(name, recorded, **options) == links(name, Batched, **options)
    assert sum(each.replays for each in pool) > 3 * len(pool) > 0, "each is recorded once and replayed often"


class Refusing(OnCpu):
    """A capture that fails, and again when it ends, as CUDA's does."""

    def record(self, work: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        try:
            raise RuntimeError("cannot copy from memory that is not pinned\nmore")
        finally:
            raise RuntimeError("the capture was invalidated")


def test_what_cannot_be_recorded_is_called_as_it_is_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    pool: list[OnCpu] = []
    assert links("ditto", partial(Batched, start=lambda device: partial(Refusing, pool))) == links("ditto", Batched)
    assert len(pool) > 1
    assert said(caplog) == [
        "engine=batched: a step that cannot be recorded is launched kernel by kernel: "
        "cannot copy from memory that is not pinned"
    ]


class Small(OnCpu):
    """A device whose memory is full with more than `most` clients."""

    def __init__(self, most: int, pool: list[OnCpu]) -> None:
        super().__init__(pool)
        self.most = most

    def record(self, work: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        if len(work()[0]) <= self.most:
            return super().record(work)
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        finally:
            raise RuntimeError("the capture was invalidated")


def small(most: int, pool: list[OnCpu]) -> Make:
    return partial(Batched, start=lambda device: partial(Small, most, pool))


@pytest.mark.parametrize("name", ["fedavg", "ditto"])
def test_out_of_memory_halves_the_group_for_good_with_the_bits_of_such_groups(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool: list[OnCpu] = []
    found = links(name, small(2, pool), optimizer=OPTIMIZERS["momentum"])
    assert said(caplog) == ["engine=batched: out of memory with 4 clients at once: from now on at most 2"]
    assert [bool(each.results) for each in pool].count(False) == 1, "more was not tried again in a later round"
    monkeypatch.setattr(batched, "MOST", 2)
    assert found == links(name, Batched, optimizer=OPTIMIZERS["momentum"])


def test_without_memory_for_one_client_the_plain_engine_tries(caplog: pytest.LogCaptureFixture) -> None:
    rounds, network = run("fedavg", small(0, []))
    assert [done.link for done in rounds] == links("fedavg", Single)
    assert network.reasons == {"one client alone is out of memory: CUDA out of memory. Tried to allocate 2.00 GiB."}
    assert [line.split(": ")[1] for line in said(caplog) if "at once" in line] == [
        "out of memory with 4 clients at once",
        "out of memory with 2 clients at once",
    ]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("fedshare")]


def test_a_stream_goes_on_where_it_was() -> None:
    with seeds.scope("a stream"):
        before = seeds.position()
        first, second = torch.rand(3), torch.rand(3)
        seeds.go_to(before)
        assert torch.equal(torch.rand(3), first)
        assert torch.equal(torch.rand(3), second)


def on(device: str) -> Scratch:
    scratch = build("fedavg").scratch
    scratch.device = torch.device(device)
    return scratch


def test_groups_are_larger_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = len(on("cpu").flat)
    monkeypatch.setattr(batched, "CACHED", 5 * numbers)
    monkeypatch.setattr(batched, "STORED", 50 * numbers)
    assert [group_size(on(device)) for device in ("cpu", "cuda", "cuda:1", "mps")] == [5, 50, 50, 50]


def test_auto_does_not_choose_batching_on_a_gpu() -> None:
    made = replace(build("fedavg"), shares=world.shares(32))
    assert choice.chosen(made, Effort(10**6, 1e9), None)[0] == "batched"
    elsewhere = replace(made, scratch=on("cuda:1"))
    assert choice.chosen(elsewhere, Effort(10**6, 1e9), None) == (
        "plain",
        "device=cuda:1: when batching pays is known for CPUs only",
    )


def test_workers_take_the_gpus_in_turn_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)

    def built() -> list[int]:
        return list(chosen)

    assert [devices.shared(built, "cuda", worker)()[-1] for worker in range(5)] == [0, 1, 2, 0, 1]
    del chosen[:]
    assert [devices.shared(built, device, 1)() for device in ("cpu", "cuda:1", "mps")] == [[], [], []]
    assert [devices.gpus(device) for device in ("cpu", "cuda", "cuda:2", "mps")] == [0, 3, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["fedavg", "ditto", "fedcac"])
def test_a_gpu_agrees_with_the_cpu_to_1e_10(name: str, caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for device in ("cpu", "cuda"):
        rounds, network = run(name, Batched, device=device, optimizer=OPTIMIZERS["momentum"])
        assert not network.reasons
        found.append(tensors([done.state for done in rounds]))
    assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-10) for a, b in zip(*found, strict=True))
    assert not said(caplog), "every plan is captured"
