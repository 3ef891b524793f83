"""Disks that are full or read-only: one line, nothing half-written, and the same bits once there is room again."""

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
import torch

import forked
import world
from deployed import Deployment, assert_equal, certificates
from fedshare.errors import RunHalted, UserError
from fedshare.experiments.cli import main
from fedshare.experiments.running import pictures, rounds
from fedshare.identity.identity import Identity
from fedshare.machine import files
from fedshare.machine.files import private_folder, sweep, write_atomically
from fedshare.runs import RunFolder, checkpoint
from fedshare.transport.flower.memory import Memory

pytestmark = pytest.mark.long

SMALL = ["model=logistic", "partition.clients=3", "rounds=3", "client.epochs=1", "workers=0", "checkpoint_every=2"]
ONEBYTE = ["strategy=onebyte", *SMALL]
BEST = ["strategy=fedcac", *SMALL, "validation=0.2", "best=accuracy"]
# Every file that a run writes, in the order in which it first does; and the config with which it is.
POINTS = {
    "initial.safetensors": BEST,
    "versions.json": BEST,
    "seals.jsonl": BEST,
    "mark": BEST,
    "config.yaml": BEST,
    "ledger": ONEBYTE,
    "metrics.jsonl": BEST,
    "digests.jsonl": BEST,
    "best/round-000001.safetensors": BEST,
    "best/round-000001.json": BEST,
    "best.safetensors": ["strategy=fedavg", *BEST[1:]],
    "partition.svg": BEST,
    "checkpoints/round-000002.safetensors": BEST,
    "checkpoints/round-000002.json": BEST,
    "checkpoints/round-000003.safetensors": BEST,
    "accuracy.svg": BEST,
    "collaboration.svg": BEST,
    "model.safetensors": ["strategy=fedavg", *SMALL],
}


def fedshare(*arguments: str) -> int:
    """The command, in this process; its exit status."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


def synced(file: int) -> Path:
    """The file that is to lie where this one is written."""
    path = Path(os.readlink(f"/proc/self/fd/{file}"))
    temporary = re.fullmatch(r"\.(.+)\.\d+\.tmp", path.name)
    return path.with_name(temporary[1]) if temporary else path


@contextmanager
def full_disk(at: Callable[[Path], bool]) -> Iterator[list[Path]]:
    """A disk that is full from the first write on of a file that is `at`; what was written is cut short.

    Gives the files that were written until then.
    """
    sync, written, full = os.fsync, list[Path](), False

    def fail(file: int) -> None:
        nonlocal full
        path = synced(file)
        full = full or at(path)
        if full and not path.is_dir():
            os.ftruncate(file, os.fstat(file).st_size - 1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        sync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield written


def strays(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Runs by their overrides, each made once."""
    base = tmp_path_factory.mktemp("undisturbed")

    @cache
    def make(*overrides: str) -> RunFolder:
        folder = base / str(len(list(base.iterdir())))
        assert fedshare("run", *overrides, f"folder={folder}") == 0
        return RunFolder(folder)

    return make


Runs = Callable[..., RunFolder]


@pytest.mark.parametrize("config", [BEST, ONEBYTE, ["strategy=fedavg", *BEST[1:]]], ids=["best", "onebyte", "fedavg"])
def test_all_places_where_a_run_writes_are_tried(config: list[str], tmp_path: Path) -> None:
    with full_disk(lambda _: False) as written:
        assert fedshare("run", *config, f"folder={tmp_path / 'run'}") == 0
    found = {str(path.relative_to(tmp_path / "run")) for path in written if path.is_file()}
    same = {re.sub(r"round-\d+", "round", point) for point in POINTS}
    assert {re.sub(r"round-\d+", "round", name) for name in found} <= same


@pytest.mark.parametrize("point", POINTS)
def test_a_disk_that_is_full_at_any_write_costs_no_bit(
    point: str,
    undisturbed: Runs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = "matplotlib.backends.backend_svg.FigureCanvasSVG.print_svg"  # most of the time of so small a run
    monkeypatch.setattr(drawn, lambda _, file, **__: file.write(b"<svg/>"))
    folder, config = tmp_path / "run", POINTS[point]
    with full_disk(lambda path: path == folder / point):
        assert fedshare("run", *config, f"folder={folder}") == 3
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"fedshare: {folder}: cannot be written: No space left on device ({point}); "), said
    assert strays(tmp_path) == []
    if (begun := folder / "config.yaml").exists():
        last = next(iter(checkpoint.rounds(folder / "checkpoints")), 0)
        assert (f"safe up to round {last}, its last checkpoint" if last else "no round yet") in said[-1]
        assert said[-1].endswith(f"`fedshare resume {folder}` goes on, to the same bits")
        again = ["resume", str(folder)]
    else:
        assert said[-1].endswith("nothing of the run is there; once it can be written, the same command begins it")
        assert not any(folder.glob("*")), "nor half of it"
        again = ["run", *config, f"folder={folder}"]
    assert begun.exists() == (list(POINTS).index(point) > list(POINTS).index("config.yaml"))
    assert fedshare(*again) == 0
    whole = undisturbed(*config)
    assert RunFolder(folder).links() == whole.links()
    assert fedshare("verify", str(whole.path), str(folder)) == 0
    assert {path.name for path in folder.iterdir()} >= {path.name for path in whole.path.iterdir()}


def test_a_picture_that_cannot_be_drawn_does_not_hide_why_a_run_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no font")

    def halted(*_: object, **__: object) -> None:
        raise RunHalted("round 1: the cause")

    monkeypatch.setattr(pictures, "progress_plot", broken)
    monkeypatch.setattr(rounds, "played", halted)
    assert fedshare("run", *SMALL, f"folder={tmp_path / 'run'}") == 3
    assert capsys.readouterr().err == "fedshare: round 1: the cause\n"


# For real.


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of its own, mounted with these options, or mounted anew with others."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        again = ["-o", f"remount,{options}"] if mounted else ["-o", options]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(disk)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted = True
        return disk

    if not shutil.which("mount"):
        pytest.skip("no disk can be mounted here: there is no mount")
    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


LONGER = ["model=logistic", "partition.clients=3", "rounds=20", "client.epochs=1", "workers=0", "checkpoint_every=3"]


def test_a_small_disk_fills_up_and_is_made_larger(
    small: Callable[[str], Path], undisturbed: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = undisturbed(*LONGER)
    size = sum(path.stat().st_size for path in whole.path.rglob("*") if path.is_file())
    run = small(f"size={size * 2 // 3}") / "run"
    assert fedshare("run", *LONGER, f"folder={run}") == 3
    said = capsys.readouterr().err
    assert re.search(r"cannot be written: No space left on device \(.*\); safe up to round \d+, its last", said), said
    assert 0 < len(RunFolder(run).rows()) < 20
    assert strays(run) == []
    small("size=16m")
    assert fedshare("resume", str(run)) == 0
    assert fedshare("verify", str(whole.path), str(run)) == 0


@pytest.mark.process
def test_a_file_beyond_the_limit_is_such_a_disk(undisturbed: Runs, tmp_path: Path) -> None:
    whole, run = undisturbed(*LONGER), tmp_path / "run"
    limit = whole.links_file.stat().st_size * 2 // 3
    program = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    program += "from fedshare.experiments.cli import main; main(sys.argv[1:])"
    ended = forked.run("-c", program, "run", *LONGER, f"folder={run}", timeout=world.PATIENCE)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(f"fedshare: {run}: cannot be written: File too large (")
    assert fedshare("resume", str(run)) == 0
    assert fedshare("verify", str(whole.path), str(run)) == 0


def test_a_read_only_disk(small: Callable[[str], Path], undisturbed: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(undisturbed(*SMALL).path, small("size=16m") / "run")
    small("ro")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert fedshare("resume", str(run), "--rounds", "5") == 3
    line = f"fedshare: {run}: cannot be written: Read-only file system (.lock); safe up to round 3, its last checkpoint"
    assert capsys.readouterr().err.startswith(line)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert fedshare("run", *SMALL, f"folder={run.with_name('new')}") == 3
    assert re.fullmatch(r"fedshare: .*/new.*: Read-only file system.*\n", capsys.readouterr().err)
    small("rw")
    assert fedshare("resume", str(run), "--rounds", "5") == 0


def test_other_commands_say_which_file_cannot_be_written(
    tmp_path: Path, undisturbed: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, model = tmp_path / "keys", tmp_path / "model.safetensors"
    make = ["keys", str(keys), "--server", "localhost", "--clients", "2"]
    with full_disk(lambda path: path.name == "client.key"):
        assert fedshare(*make) == 3
    assert capsys.readouterr().err == f"fedshare: {keys}/client-0/client.key: No space left on device\n"
    assert strays(tmp_path) == []
    assert fedshare(*make) == 0
    with full_disk(lambda path: path == model):
        assert fedshare("export", str(undisturbed(*SMALL).path), str(model)) == 3
    assert capsys.readouterr().err == f"fedshare: {model}: No space left on device\n"
    assert list(tmp_path.iterdir()) == [keys]


@pytest.mark.process
def test_a_sweep_a_matrix_and_a_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = {
        "digests.jsonl": ["run", "-m", "seed=0,1", *SMALL, "hydra.sweep.dir=sweep"],
        "matrix.csv": ["matrix", "attacks=none", "defences=fedavg", "partitions=iid", "seeds=0", "rounds=1"],
        "round-000001.json": ["pretrain", "model=logistic", "data=digits", "epochs=2", "folder=backbone"],
    }
    commands["matrix.csv"] += ["folder=matrix", "workers=1", "reference=null", "partition.clients=3"]
    said = {}
    for point, command in commands.items():
        with full_disk(lambda path, point=point: path.name == point):  # type: ignore[misc]
            assert fedshare(*command) == 3, point
        said[point] = capsys.readouterr().err.splitlines()[-1]
        assert strays(tmp_path) == []
    assert said["digests.jsonl"] == "fedshare: 2 of 2 jobs failed"
    assert said["matrix.csv"].endswith("once it can be written, the same command plays those that are left")
    assert said["round-000001.json"].endswith(
        "once it can be written, `fedshare pretrain --resume backbone` goes on, to the same bits"
    )
    assert fedshare(*commands["matrix.csv"]) == 0
    assert fedshare("pretrain", "--resume", "backbone") == 0


# In a deployment.

LONG = ["data=digits", "model=logistic", "partition.clients=3", "strategy=local", "checkpoint_every=3"]
LONG += ["client.batch_size=2", "client.epochs=1"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def deployment(tmp_path: Path, keys: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path, keys, *LONG) as made:
        yield made


def fill(disk: Path) -> Path:
    """What fills a disk, to be taken away again."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return ballast


@pytest.mark.process
def test_a_server_goes_on_when_its_disk_has_room_again(
    deployment: Deployment, small: Callable[[str], Path], undisturbed: Runs
) -> None:
    deployment.overrides += ("rounds=9",)
    disk = small("size=4m")
    deployment.run = disk / "run"
    server, clients = deployment.server(), [deployment.client(id) for id in range(3)]
    deployment.reach(4, server)
    ballast = fill(disk)
    assert server.wait() == 3, server.said
    assert f"fedshare: {deployment.run}: cannot be written: No space left on device (" in server.said
    assert f"the same command with --resume {deployment.run} goes on, to the same bits" in server.said
    assert strays(deployment.run) == []
    ballast.unlink()
    server = deployment.server()
    assert server.wait() == 0, server.said
    assert [client.wait() for client in clients] == [0, 0, 0], "they have waited"
    assert_equal(deployment.run, undisturbed(*LONG, "rounds=9", "workers=0").path)


@pytest.mark.process
def test_a_client_leaves_with_what_is_safe_and_comes_back(deployment: Deployment, small: Callable[[str], Path]) -> None:
    deployment.overrides += ("rounds=100000",)
    disk = small("size=1m")
    state = ["--state", str(disk / "state")]
    server, others = deployment.server(), [deployment.client(id) for id in range(2)]
    client = deployment.client(2, *state)
    deployment.reach(2, server)
    ballast = fill(disk)
    assert client.wait() == 3, client.said
    (memories,) = (disk / "state").glob("*/client-2")
    last = client.said.splitlines()[-1]
    said = rf"fedshare: {memories}: cannot be written: No space left on device \(round-.*\); client 2's memory of round"
    assert re.match(said, last), client.said
    assert last.endswith("is safe; once it can be written, the same command goes on with the run")
    assert strays(disk) == []
    server.until(f"client 2 dropped: {memories}: cannot be written: No space left on device")
    server.until("client 2 is gone: it left")
    ballast.unlink()
    client = deployment.client(2, *state)
    server.until("client 2 is back")
    back = deployment.rounds()
    deployment.reach(back + 4, server)
    assert 2 in RunFolder(deployment.run).rows()[-1]["clients"], "with the memory it had"
    assert [other.process.poll() for other in others] == [None, None]
    server.signal(signal.SIGTERM)
    server.wait()
    assert mode(memories) == mode(memories.parent) == mode(disk / "state") == 0o700
    assert {mode(path) for path in memories.iterdir()} == {0o600}


# What is left behind, and who may read it.


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.process
@pytest.mark.parametrize("at", ["initial.safetensors", "config.yaml"])
def test_what_a_kill_leaves_before_there_is_a_run_is_swept_up(at: str, tmp_path: Path, undisturbed: Runs) -> None:
    run = tmp_path / "run"
    program = (
        "import os, signal, sys\n"
        "from fedshare.machine import files\n"
        "replace = os.replace\n"
        "def fatal(source, target):\n"
        f"    os.kill(os.getpid(), signal.SIGKILL) if target.name == {at!r} else replace(source, target)\n"
        "files.os.replace = fatal\n"
        "from fedshare.experiments.cli import main\n"
        "main(sys.argv[1:])"
    )
    killed = forked.run("-c", program, "run", *SMALL, f"folder={run}", timeout=world.PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(strays(run)) == 1
    assert fedshare("run", *SMALL, f"folder={run}") == 0
    assert strays(run) == []
    assert RunFolder(run).links() == undisturbed(*SMALL).links()


def test_a_folder_that_several_use_keeps_what_a_live_process_writes(tmp_path: Path) -> None:
    numbers = {"live": os.getppid(), "own": os.getpid(), "dead": 2**22 + 1}  # the last above Linux's largest
    names = {kind: f".initial.safetensors.{number}.tmp" for kind, number in numbers.items()}
    for name in names.values():
        (tmp_path / name).touch()
    sweep(tmp_path, shared=True)
    assert [path.name for path in tmp_path.iterdir()] == [names["live"]]
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_leaves_what_another_thread_of_this_process_is_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an operator's order is written by the thread of the socket while the run takes its folder."""
    fsync = os.fsync

    def swept(descriptor: int) -> None:
        thread = threading.Thread(target=sweep, args=[tmp_path])
        thread.start()
        thread.join()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", swept)
    write_atomically(tmp_path / "orders.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["orders.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_write_that_fails_names_its_file_and_leaves_the_old_one(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match=re.escape(f"{os.strerror(number)}: '{path}'")):
        write_atomically(path, "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


@pytest.fixture(params=[0, 0o022, 0o777], ids=["umask 0", "umask 022", "umask 777"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_memories_are_their_owners_alone(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "state" / "run" / "client-0")
    memory.save(1, {"w": torch.ones(2)})
    for folder in (memory.folder, *list(memory.folder.parents)[:2]):
        assert mode(folder) == 0o700, folder
    assert [mode(path) for path in memory.folder.iterdir()] == [0o600]
    assert memory.recall(1, 1)["w"].tolist() == [1, 1]


def test_memories_that_an_older_version_left_open_are_closed(tmp_path: Path) -> None:
    (tmp_path / "client-0").mkdir(mode=0o755)
    assert mode(Memory(tmp_path / "client-0").folder) == 0o700
    private_folder(tmp_path / "client-0")
    assert mode(tmp_path / "client-0") == 0o700


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.mark.parametrize("role", ["server", "client-0"])
@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_key_that_others_can_use_is_refused_with_what_to_type(
    role: str, open_to: int, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shutil.copytree(keys / role, tmp_path / "my keys")
    key = place / f"{role.partition('-')[0]}.key"
    key.chmod(open_to)
    commands = {"server": ["server", *SMALL], "client-0": ["client", "127.0.0.1:1", "--id", "0"]}
    assert fedshare(*commands[role], "--keys", str(place)) == 2
    said = capsys.readouterr().err
    assert said == f"fedshare: {key}: others can use this private key (mode {open_to:04o}): chmod go= '{key}'\n"
    subprocess.run(said.rpartition(": ")[2], shell=True, check=True)
    Identity.load(place)


@ROOT_ONLY
def test_root_s_key_may_be_read_by_the_group_of_a_service(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(keys / "server", tmp_path / "server")
    key = place / "server.key"
    os.chown(key, 0, 4321)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(os, "getgroups", lambda: [4321])
    key.chmod(0o640)
    Identity.load(place)
    key.chmod(0o644)
    with pytest.raises(UserError, match=f"chmod g=r,o= {key}$"):
        Identity.load(place)
    monkeypatch.setattr(os, "getgroups", list)
    with pytest.raises(UserError, match=f"chown 1234 {key} && chmod go= {key}$"):
        Identity.load(place)


def test_on_a_read_only_mount_the_modes_are_the_mount_s(keys: Path, small: Callable[[str], Path]) -> None:
    """Kubernetes mounts secrets with 0644, docker with 0444, systemd credentials with 0440 and a list of who may."""
    place = shutil.copytree(keys / "client-0", small("size=1m") / "secret")
    (place / "client.key").chmod(0o444)
    with pytest.raises(UserError, match="others can use this private key"):
        Identity.load(place)
    small("ro")
    assert Identity.load(place).client_id == 0
