"""Flower's app processes, forked from one that has loaded the libraries: not seconds of imports for every message.

``python preloaded.py SOCKET`` loads the libraries and no app, and forks a process for each request. `install` makes the
commands that ask for one. Each process is new, has its caller's environment, and loads its app from Flower's bundle.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

COMMANDS = {
    "flwr-serverapp": "flwr.superlink.cli.flwr_serverapp",
    "flwr-clientapp": "flwr.supernode.cli.flwr_clientapp",
}
LIBRARIES = ["hydra", "matplotlib.pyplot", "sklearn.datasets", "torch._dynamo", *COMMANDS.values()]
REQUEST = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as request:
    request.connect({address!r})
    socket.send_fds(request, [json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()], [1, 2])
"""


def install(folder: Path, address: Path) -> None:
    """The commands, in a folder for the front of PATH."""
    folder.mkdir()
    for command in COMMANDS:
        (folder / command).write_text(REQUEST.format(python=sys.executable, address=str(address)))
        (folder / command).chmod(0o755)


def serve(address: str) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # so that collecting garbage does not copy the libraries' pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as requests:
        requests.bind(address)
        requests.listen()
        print("preloaded", flush=True)
        while True:
            request, _ = requests.accept()
            with request:
                data, outputs, _, _ = socket.recv_fds(request, 1 << 20, 2)
            if os.fork() == 0:
                requests.close()
                become(*json.loads(data), outputs)
            for output in outputs:
                os.close(output)


def become(arguments: list[str], folder: str, environment: dict[str, str], outputs: list[int]) -> None:
    """Be the process that was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    name = Path(arguments[0]).name
    try:
        getattr(importlib.import_module(COMMANDS[name]), name.replace("-", "_"))()
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # at once: to take the libraries down costs seconds, and Flower does not ask for the exit status


if __name__ == "__main__":
    serve(sys.argv[1])
