"""Tensors in the memory that a simulation shares with its workers: what is written is read, and nothing is left."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_simulation import troubled
from torch import Tensor

import world
from fedshare.client import Client
from fedshare.machine.memory import LEAST, Region
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.population import Population
from fedshare.simulation import Simulation
from fedshare.simulation.jobs import Job
from fedshare.simulation.messages import Writer, sealed, tensors, value
from fedshare.simulation.worker import shared
from fedshare.strategies.fedavg import FedAvg

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16),
]


@pytest.fixture
def region() -> Iterator[Region]:
    made = Region()
    yield made
    made.close()


def read(region: Region, *values: Any) -> Any:
    """What the other side reads of a message."""
    message = Writer(region)
    header = message.header([-1, *map(message.encoded, values)])
    return value(region, json.loads(sealed(header)), [])


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether both have the same type, shape and bits."""
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected)]
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(*flat)


def numbers(dtype: torch.dtype, *shape: int) -> Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count) % 2 if dtype is torch.bool else torch.randn(count)).reshape(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_and_shape_are_read_as_written(dtype: torch.dtype, region: Region) -> None:
    written = [numbers(dtype, *shape) for shape in [(3, 5), (), (0,), (2, 0, 3), (1,), (7, 1, 2)]]
    written += [written[0].T, written[0][:, 1:4:2], written[5].expand(7, 4, 2)]
    assert all(same(*pair) for pair in zip(read(region, *written), written, strict=True))


def test_everything_else_is_read_as_written(region: Region) -> None:
    written = [{3: [1, {"": None}], "3": {}}, [], "é\ud800\n", -0.0, float("inf"), 10**30, True, 0.1 + 0.2]
    assert repr(read(region, *written)) == repr(written)
    assert read(region) == []


WRONG: dict[str, Any] = {
    "a set": {1, 2},
    "a key that is a tuple": {(1,): 2},
    "an object": {"state": object()},
    "a sparse tensor": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_what_no_state_may_hold_is_refused_and_others_are_read(wrong: Any, region: Region) -> None:
    message, weight = Writer(region), torch.randn(3)
    with pytest.raises((TypeError, RuntimeError)):
        message.encoded([{"w": torch.randn(5)}, wrong])
    assert torch.equal(value(region, message.header(message.encoded({"w": weight})), [])["w"], weight)


def test_views_of_one_memory_are_views_of_one_memory_again(region: Region) -> None:
    models = torch.randn(50, 61)
    apart = [torch.randn(4), torch.randn(4)]
    rows = list(models[:, :60].view(50, 6, 10).unbind())
    found = read(region, *rows, *apart, rows[7])
    memories = [tensor.untyped_storage().data_ptr() for tensor in found]
    assert len(set(memories[:50])) == 1
    assert len(set(memories)) == 3
    assert found[-1] is found[7]
    found[3].zero_()
    assert all(torch.equal(*pair) for pair in zip(found[4:50], rows[4:], strict=True)), "they do not overlap"


def test_a_small_part_of_a_large_memory_is_written_alone(region: Region) -> None:
    large = torch.randn(1_000_000)
    message = Writer(region)
    pieces = [large[:10], large[500_000:500_020], large[-1]]
    encoded = message.encoded(pieces)
    header = message.header(encoded)
    assert header["size"] < 1000
    assert all(same(*pair) for pair in zip(value(region, header, []), pieces, strict=True))


def test_what_was_read_outlives_the_next_message_and_the_region() -> None:
    region = Region()
    first = torch.randn(100)
    kept = read(region, first)[0]
    read(region, torch.zeros(100_000))
    region.close()
    assert torch.equal(kept, first)


def test_both_sides_see_a_region_that_has_grown(region: Region) -> None:
    other = Region.__new__(Region)
    other._map(os.dup(region._file.fileno()))
    for size in (1, LEAST, 10, 3 * LEAST):
        written = torch.randn(size)
        message = Writer(region)
        encoded = message.encoded(written)
        assert torch.equal(value(other, message.header(encoded), []), written)
    other.close()


def test_no_folder_lists_a_region(region: Region) -> None:
    region.address(1)
    assert os.fstat(region._file.fileno()).st_nlink == 0


def job(client: int, **groups: dict[str, Tensor]) -> Job:
    return Job(Purpose.TRAIN, 1, client, Payload(groups), {})


def test_what_several_groups_download_is_written_once(region: Region) -> None:
    common, own, mine = torch.randn(1000), [torch.randn(10) for _ in range(3)], torch.randn(7)
    groups = [
        [job(0, params={"w": common}, extra={"m": mine}), job(1, params={"w": common}, extra={"m": mine})],
        [job(2, params={"w": common, "x": own[2]})],
    ]
    found = shared(groups, region)
    assert [tensor.numel() for tensor in tensors(region, found.header)] == [1000]
    apart = Region()
    message = Writer(apart, found.numbers)
    encoded = message.encoded([common, own[2]])
    header = message.header(encoded)
    assert header["size"] == 64
    assert all(map(same, value(apart, header, tensors(region, found.header)), [common, own[2]]))
    apart.close()


@dataclass(frozen=True)
class Echo(FedAvg):
    """Returns what it gets, and remembers it."""

    def apply(self, client: Client, download: Payload) -> None:
        pass

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before, client.state = client.state, {"before": download.tensors["params"]}
        if client.id == 2 and "sparse" in download.metrics:
            return Payload({"params": {"w": torch.eye(3).to_sparse()}}, {"examples": 1.0})
        return Payload(download.tensors | before, {"examples": 1.0} | download.metrics)


def echo() -> Population:
    return replace(world.build("fedavg"), strategy=Echo())


@pytest.mark.process
def test_a_worker_returns_tensors_of_all_types_and_sizes_and_keeps_none() -> None:
    with Simulation(echo, workers=2) as network:
        before: dict[int, dict[str, Tensor]] = {}
        for round, size in enumerate((3, 200_000, 0, 5), 1):
            common = {str(dtype): numbers(dtype, size) for dtype in DTYPES}
            sent = {client: common | {"own": torch.full((2,), client + round)} for client in network.client_ids()}
            exchange = network.exchange(
                Purpose.TRAIN, round, {client: Payload({"params": sent[client]}) for client in sent}
            )
            for client, answer in exchange.answers.items():
                expected = {"params": sent[client]} | ({"before": before[client]} if before else {})
                assert answer.tensors.keys() == expected.keys()
                for group, found in answer.tensors.items():
                    assert list(found) == list(expected[group])
                    assert all(same(tensor, expected[group][name]) for name, tensor in found.items())
            before = sent


@pytest.mark.process
def test_an_answer_that_cannot_be_sent_is_its_client_s_error_alone() -> None:
    with Simulation(echo, workers=1, on_error="drop") as network:
        downloads = {client: Payload({"params": {"w": torch.ones(3)}}, {"sparse": 1.0}) for client in range(3)}
        exchange = network.exchange(Purpose.TRAIN, 1, downloads)
    assert list(exchange.answers) == [0, 1]
    assert "raised" in exchange.absent[2]


@pytest.mark.process
def test_no_file_stays_open_after_workers_that_died(tmp_path: Path) -> None:
    def play(mark: str) -> None:
        with Simulation(partial(troubled, "die", mark), workers=2) as network:
            downloads = {client: Payload({"params": world.begin(network.population)["params"]}) for client in range(3)}
            assert list(network.exchange(Purpose.TRAIN, 1, downloads).answers) == [0, 1, 2]
        gc.collect()

    play(str(tmp_path / "first"))  # what stays open for all that follows, such as multiprocessing's own
    before = len(os.listdir("/proc/self/fd"))
    play(str(tmp_path / "second"))
    assert (tmp_path / "second").exists()
    assert len(os.listdir("/proc/self/fd")) == before


KILLED = """
import os, signal, torch
from pathlib import Path
import test_messages
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.simulation import Simulation

if __name__ == "__main__":
    network = Simulation(test_messages.echo, workers=2)
    common = torch.ones(500_000)
    downloads = {client: Payload({"params": {"w": common, "own": torch.ones(7)}}) for client in range(4)}
    network.exchange(Purpose.TRAIN, 1, downloads)
    for worker in network._workers._workers:
        print(Path(f"/proc/{worker.process.pid}/maps").read_text(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_kill_9_leaves_no_process_no_memory_and_no_complaint(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(  # which waits until the workers have closed their outputs, too
        [sys.executable, tmp_path / "killed.py"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=world.PATIENCE,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    files = [line.split(maxsplit=5)[5] for line in done.stdout.splitlines() if " rw-s " in line]
    assert len(files) == 6, "of two workers, what is common, and each way what is their own"
    assert all(file.endswith(" (deleted)") for file in files), "nobody else can open them, and they end with the last"
