"""The flags of `fedshare peer` and `fedshare peers`."""

from fedshare.experiments.config.own import add_config
from fedshare.experiments.options import TLS, Parser, connection


def peer(made: Parser) -> None:
    add_config(made)
    made.add_argument("--id", type=int, required=True, metavar="N", help="which peer this is, from 0")
    made.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="address for neighbours; 0.0.0.0:PORT: all interfaces; default: the one in `addresses`",
    )
    made.add_argument(
        "--advertise", metavar="HOST:PORT", help="where others reach this peer; default: as in `addresses`, or --listen"
    )
    made.add_argument(
        "--known",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="address of any peer, which tells those of the others; may be given several times",
    )
    made.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="serve metrics for Prometheus at this address; without HOST, on this machine only",
    )
    made.add_argument("--lan", action="store_true", help="find the others on the local network: fedshare[lan]")
    made.add_argument("--relay", metavar="HOST:PORT", help="reach the others by the `fedshare relay` at this address")
    made.add_argument(
        "--with-relay",
        metavar="HOST:PORT",
        help="keep the relay in this process, at this address; --keys holds its folder, too",
    )
    made.add_argument(
        "--attest-every", type=int, default=10, metavar="N", help="with --relay: compare states after every N rounds"
    )
    made.add_argument(
        "--wait",
        type=float,
        default=600.0,
        metavar="S",
        help="maximum time in seconds to wait for neighbours at first, or for a relay that is away",
    )
    made.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds that a neighbour may be disconnected"
    )
    made.add_argument(
        "--owner", metavar="FILE", help="owner.pub: who holds its key may remove peers (`fedshare remove`)"
    )
    connection(made)


def peers(made: Parser) -> None:
    made.add_argument("address", metavar="HOST:PORT", help="the address of a peer")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    made.add_argument("--keys", metavar="DIR", help=TLS)
    made.add_argument("--insecure", action="store_true", help="allow connections to other machines without TLS")
