"""Processes that are forked from one that has loaded the libraries differ from others by what is loaded alone."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import forked
from world import PATIENCE

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="elsewhere none is forked")]
SAYS = """
import json, os, sys
says = {"id": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "folder": os.getcwd(), "given": sys.argv}
says |= {"path": sys.path[0], "variable": os.environ.get("FEDSHARE_OWN"), "main": __name__}
says |= {"files": sorted(os.listdir("/proc/self/fd"), key=int)[:-1]}
says |= {"loaded": sorted({"torch", "hydra", "grpc", "flwr"} & set(sys.modules))}
print(json.dumps(says))
"""


def says(folder: Path, **environ: str) -> dict[str, Any]:
    done = forked.run("-c", SAYS, "a", "b", cwd=folder, env=os.environ | environ, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_it_is_a_child_of_its_own_with_its_folder_its_variables_and_no_file_too_many(tmp_path: Path) -> None:
    warm = says(tmp_path, FEDSHARE_OWN="1")
    with forked.cold():
        cold = says(tmp_path, FEDSHARE_OWN="1")
    assert warm.pop("loaded") == ["hydra", "torch"]
    assert cold.pop("loaded") == []
    ids = {warm.pop("id"), cold.pop("id"), os.getpid()}
    assert len(ids) == 3
    assert warm == cold
    assert (warm["parent"], warm["session"]) == (os.getpid(), os.getsid(0))
    assert (warm["folder"], warm["given"], warm["variable"]) == (str(tmp_path), ["-c", "a", "b"], "1")


@pytest.mark.parametrize("name", ["ATEN_CPU_CAPABILITY", "PYTHONPATH", "NPY_DISABLE_CPU_FEATURES", "OMP_NUM_THREADS"])
def test_what_is_read_as_libraries_load_is_read_anew(name: str, tmp_path: Path) -> None:
    other = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "7"}.get(name, "")
    value = other if os.environ.get(name) != other else None
    if value is None:
        pytest.skip(f"{name} is {other!r} here")
    assert says(tmp_path, **{name: value})["loaded"] == []


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise ValueError('no such luck')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_exit_statuses_are_those_of_any_process(program: str, status: int) -> None:
    done = forked.run("-c", program, timeout=PATIENCE)
    assert done.returncode == status
    assert done.stderr.endswith("ValueError: no such luck\n" if status == 1 else "")


ENDING = """
import atexit, sys, threading, time
def late():
    time.sleep(0.2)
    print("the thread", end=" ")
atexit.register(print, "and what is to be done last")
threading.Thread(target=late).start()
raise SystemExit({})
"""


@pytest.mark.parametrize("end", [None, 4, "why"])
def test_it_ends_as_any_process_with_its_threads_and_what_is_to_be_done_last(end: object) -> None:
    done = [forked.run("-c", ENDING.format(repr(end)), timeout=PATIENCE)]
    with forked.cold():
        done.append(forked.run("-c", ENDING.format(repr(end)), timeout=PATIENCE))
    assert done[0].stdout == "the thread and what is to be done last\n"
    assert done[0].returncode == {None: 0, 4: 4, "why": 1}[end]
    assert vars(done[0]) == vars(done[1])


def test_it_is_signalled_and_may_lead_a_session() -> None:
    program = "import os, time; print(os.getsid(0) == os.getpid(), flush=True); time.sleep(3600)"
    with forked.python("-c", program, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "True\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == -signal.SIGTERM


def test_a_module_is_run_as_main(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import sys; print(__name__, __spec__.name, sys.argv)")
    done = forked.run("-m", "own", "a", cwd=tmp_path, timeout=PATIENCE)
    assert done.stdout == f"__main__ own ['{tmp_path / 'own.py'}', 'a']\n"


def _loaded(connection: Any, status: int) -> None:
    connection.send("torch._dynamo" in sys.modules)
    sys.exit(status)


def test_multiprocessing_forks_what_it_spawns() -> None:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_loaded, args=(theirs, 5))
    process.start()
    theirs.close()
    assert mine.recv()
    process.join()
    assert process.exitcode == 5
    process.close()


def test_each_of_several_threads_has_its_own_children() -> None:
    def status(number: int) -> int:
        libraries = (("json",), ("decimal",), ("string",))[number % 3]
        return forked.run("-c", f"raise SystemExit({number})", timeout=PATIENCE, libraries=libraries).returncode

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(status, range(60))) == list(range(60))
