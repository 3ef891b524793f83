"""The flags of the deployment commands."""

import argparse
import math
from typing import Any

from fedshare.errors import UserError
from fedshare.experiments.config.own import add_config, add_config_dir, add_trust
from fedshare.experiments.hosts import peer_options, relay_options
from fedshare.experiments.options import TLS, Parser, connection

_PAIRS: dict[str, Any] = {"action": "append", "default": [], "metavar": "PAIRS"}
_FORM = "KEY=VALUE ..., which may be given several times, or a TOML file"


def parser(command: str) -> Parser:
    made = Parser(
        prog=f"fedshare {command}", formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    {
        "server": _server,
        "client": _client,
        "gate": _gate,
        "peer": peer_options.peer,
        "relay": relay_options.add,
        "peers": peer_options.peers,
        "flower-run": _flower_run,
        "doctor": _doctor,
    }[command](made)
    return made


_RANGES = {
    "heartbeat": 0.1,
    "grace": 0.0,
    "wait": 0.0,
    "patience": 0.0,
    "clients": 1,
    "nodes": 1,
    "attest_every": 1,
    "callers": 1,
    "slack": 0.1,
}  # the lowest allowed values


def check_ranges(options: argparse.Namespace) -> None:
    for name, least in _RANGES.items():
        value = getattr(options, name, None)
        if value is not None and not least <= value < math.inf:
            raise UserError(f"--{name} {value:g}: must be at least {least:g}")


def _server(made: Parser) -> None:
    add_config(made)
    made.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="address to listen at; 0.0.0.0:PORT: all interfaces; without it and --gate: 127.0.0.1:9443",
    )
    made.add_argument("--name", metavar="NAME", help="name of the run: clients that ask for another run are refused")
    made.add_argument(
        "--gate", metavar="FOLDER", help="listen, as --name, for the gate with this --socket instead of at a port"
    )
    made.add_argument(
        "--clients",
        type=int,
        help="start when this many clients are connected; default: all; for --app: the number of clients",
    )
    made.add_argument("--wait", type=float, default=600.0, metavar="S", help="maximum time in seconds to wait for them")
    made.add_argument(
        "--resume", nargs="?", const="", metavar="FOLDER", help="continue the run in this folder, if there is one"
    )
    made.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds that a client may be disconnected"
    )
    made.add_argument(
        "--deny",
        metavar="FILE",
        help="list of refused clients, read while it runs; default: `denied` in the server's --keys",
    )
    made.add_argument(
        "--allow",
        metavar="FILE",
        help="list of admitted clients, read while it runs; default: `allowed` in the server's --keys",
    )
    made.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="serve metrics for Prometheus at this address; without HOST, on this machine only",
    )
    made.add_argument(
        "--audit", metavar="FILE", help="the audit log; default: audit.jsonl in the run's folder (--app: none)"
    )
    _callers(made)
    made.add_argument(
        "--slack",
        type=float,
        default=1.0,
        metavar="MB",
        help="how much larger a client's answer may be than twice the size that its strategy expects",
    )
    _app(made, "a folder with a third-party Flower app: run its ServerApp")
    made.add_argument("-c", "--run-config", **_PAIRS, help=f"for --app: {_FORM}")
    connection(made)


def _gate(made: Parser) -> None:
    made.add_argument(
        "--listen", required=True, metavar="HOST:PORT", help="address to listen at; 0.0.0.0:PORT: all interfaces"
    )
    made.add_argument(
        "--socket",
        required=True,
        metavar="FOLDER",
        help="folder where servers of runs listen; created with access for this user only",
    )
    _callers(made)
    connection(made)


def _callers(made: Parser) -> None:
    made.add_argument(
        "--callers",
        type=int,
        default=64,
        metavar="N",
        help="maximum number of connections per address without a greeting, plus one per client still to come",
    )


def _client(made: Parser) -> None:
    made.add_argument("server", metavar="HOST:PORT")
    made.add_argument("overrides", nargs="*", help="insist on this config; default: the server's config is used")
    made.add_argument("-cn", "--config-name", metavar="NAME", help="insist on this preset, with the overrides")
    add_config_dir(made)
    add_trust(made)
    made.add_argument("--id", metavar="I,J,...", help="which clients to run; not needed with a single certificate")
    made.add_argument(
        "--gpu", default="auto", help="auto: one client per GPU, the rest on the CPU; 0 or 0,1: these GPUs; none"
    )
    made.add_argument("--per-gpu", type=int, metavar="N", help="number of clients on one GPU")
    made.add_argument("--gpu-memory", type=float, metavar="F", help="share of a GPU's memory that a client may use")
    made.add_argument(
        "--threads",
        default="1",
        help="CPU threads per client; auto: the cores are divided; 1 gives the bits of a simulation",
    )
    made.add_argument(
        "--state",
        metavar="DIR",
        help="where clients store their state; default: $FEDSHARE_STATE, ~/.local/state/fedshare",
    )
    made.add_argument(
        "--weights", metavar="FILE", help="path of the server's weights=... on this host; default: the server's path"
    )
    made.add_argument(
        "--data",
        metavar="FILE",
        help="this host's own data, for partition=own; {id} is replaced by the client's number",
    )
    made.add_argument(
        "--patience",
        type=float,
        default=600.0,
        metavar="S",
        help="maximum time in seconds to wait for a server that is away",
    )
    _run(made)
    made.add_argument("--stay", action="store_true", help="when a run is over, wait for the next")
    _app(made, "a folder with a third-party Flower app: run its ClientApp")
    made.add_argument("--node-config", **_PAIRS, help=f"for --app: node config of this host's nodes: {_FORM}")
    connection(made)


def _flower_run(made: Parser) -> None:
    made.add_argument("app", nargs="?", default=".", metavar="PATH", help="the app's folder")
    made.add_argument("--nodes", type=int, default=10, help="number of clients")
    made.add_argument(
        "--wait", type=float, default=10.0, metavar="S", help="seconds that an app may wait for more nodes than that"
    )
    made.add_argument("-c", "--run-config", **_PAIRS, help=_FORM)
    made.add_argument("--node-config", **_PAIRS, help=f"node config: {_FORM}")


def _doctor(made: Parser) -> None:
    made.add_argument("server", nargs="?", metavar="HOST:PORT", help="a server to connect to, as a client would")
    made.add_argument("overrides", nargs="*", help="a config whose digest is compared with the server's")
    made.add_argument("-cn", "--config-name", metavar="NAME", help="a preset, as for `fedshare run`")
    add_config_dir(made)
    made.add_argument("--id", type=int, help="which client")
    _run(made)
    made.add_argument("--listen", metavar="HOST:PORT", help="check whether a server could listen at this address")
    made.add_argument("--keys", metavar="DIR", help=TLS)
    made.add_argument(
        "--state", metavar="DIR", help="where clients store their state; default: as for `fedshare client`"
    )
    made.add_argument("--insecure", action="store_true", help="without TLS")


def _run(made: Parser) -> None:
    made.add_argument("--run", metavar="NAME", help="the run to join, if there are several at one port")


def _app(made: Parser, help: str) -> None:
    made.add_argument("--app", metavar="PATH", help=help)
