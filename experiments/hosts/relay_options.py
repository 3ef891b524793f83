"""The flags of `fedshare relay`."""

from fedshare.errors import UserError
from fedshare.experiments.options import Parser


def add(made: Parser) -> None:
    made.add_argument("--log", required=True, metavar="FOLDER", help="where the log is, or will be")
    made.add_argument(
        "--listen",
        default="127.0.0.1:9444",
        metavar="HOST:PORT",
        help="address for peers; 0.0.0.0:PORT: all interfaces",
    )
    made.add_argument("--postgres", metavar="DSN", help="keep the log in this PostgreSQL database instead of a file")
    made.add_argument("--run", default="", metavar="HEX", help="the only run to take; default: the first peer's")
    made.add_argument(
        "--round-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="after a round's first message, end it without the missing peers when this time is over",
    )
    made.add_argument("--min-peers", type=int, default=2, metavar="N", help="who must have said something in a round")
    made.add_argument(
        "--peers", type=int, default=0, metavar="N", help="wait for so many before round 1; 0: for --min-peers"
    )
    made.add_argument("--message-mb", type=float, default=16.0, metavar="MB", help="largest message of a peer")
    made.add_argument(
        "--reserve-mb",
        type=float,
        default=64.0,
        metavar="MB",
        help="take nothing when less than this is free on the disk",
    )
    made.add_argument("--deny", metavar="FILE", help="list of refused peers; default: `denied` in the relay's --keys")
    made.add_argument(
        "--allow", metavar="FILE", help="list of the only peers; default: `allowed` in the relay's --keys"
    )
    made.add_argument("--metrics", metavar="[HOST:]PORT", help="Prometheus metrics at this address")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="check the whole log, print what it holds, and end")
    what.add_argument("--remove", type=int, metavar="N", help="order the running relay to remove this peer, and end")
    what.add_argument("--events", type=int, metavar="PEERS", help="print who took part, for links=file, and end")
    made.add_argument("--reason", default="by the operator", metavar="TEXT", help="for --remove: shown to the peers")
    made.add_argument("--keys", metavar="DIR", help="the folder made by `fedshare keys`, or the relay's part of it")
    made.add_argument("--insecure", action="store_true", help="allow connections from other machines without TLS")
    made.add_argument("--heartbeat", type=float, default=10.0, metavar="S", help="seconds between pings")


def check(options: object) -> None:
    """Raise UserError for a number out of its range."""
    least = {"round_seconds": 0.1, "min_peers": 1, "peers": 0, "message_mb": 0.001, "reserve_mb": 0, "heartbeat": 0.1}
    for name, lowest in least.items():
        if not lowest <= (value := getattr(options, name)) < 1e9:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be at least {lowest:g}")
    peers, some = getattr(options, "peers"), getattr(options, "min_peers")  # noqa: B009
    if 0 < peers < some:
        raise UserError(f"--peers {peers}: must be at least --min-peers {some}, or 0")
