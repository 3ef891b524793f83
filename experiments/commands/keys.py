"""`fedshare keys`: create missing keys, and request, sign, accept, revoke certificates."""

import argparse
from collections.abc import Callable
from pathlib import Path

from fedshare.errors import UserError
from fedshare.experiments.commands.passphrase import passphrase
from fedshare.experiments.options import PASSPHRASE, Parser
from fedshare.identity import enrolment
from fedshare.identity.keys import make

_DAYS = 365
_EPILOG = """for a client whose key is made on its own host, and to revoke any client:
  fedshare keys request DIR --client 3       on its host: makes a key, which stays there, and DIR/client-3/client-3.csr
  fedshare keys sign KEYS client-3.csr       at the authority: makes KEYS/client-3/client-3.pem
  fedshare keys accept DIR client-3.pem      on its host: for `fedshare client ... --keys DIR`
  fedshare keys revoke KEYS 3                refuses every certificate of client 3
  fedshare keys revoke KEYS client-3         refuses its current key; another may be signed
each has --help; `request --peer` is for a peer; write ./DIR for a folder with one of these names
"""
_Do = Callable[[argparse.Namespace], list[str]]


def keys(arguments: list[str]) -> list[str]:
    """Run the command; return lines that say what was done."""
    commands: dict[str, tuple[Callable[[Parser], None], _Do]] = {
        "request": (_requesting, _request),
        "sign": (_signing, _sign),
        "accept": (_accepting, _accept),
        "revoke": (_revoking, _revoke),
    }
    name = arguments[0] if arguments and arguments[0] in commands else ""
    described, do = commands.get(name, (_making, _make))
    parser = Parser(
        prog=f"fedshare keys {name}".rstrip(), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    described(parser)
    return do(parser.parse_intermixed_args(arguments[1:] if name else arguments))


def _making(made: Parser) -> None:
    made.epilog = _EPILOG
    made.add_argument(
        "folder", metavar="DIR", help="output folder: missing keys and certificates are made, existing ones kept"
    )
    made.add_argument("--server", metavar="HOST,...", help="the server's names or addresses")
    made.add_argument("--clients", type=int, metavar="N", help="make client-0 to client-(N-1)")
    made.add_argument(
        "--peers",
        type=int,
        metavar="N",
        help="instead of --clients: these are peers, which sign what they say; with --server, also a relay's folder",
    )
    _days(made)
    made.add_argument("--owner", action="store_true", help="make an owner's key pair, for signing runs")
    _passphrase(made)


def _make(options: argparse.Namespace) -> list[str]:
    folder, given = Path(options.folder), [options.server, options.clients]
    if options.owner:
        if [*given, options.peers] != [None, None, None]:
            raise UserError("--owner: makes no certificates: leave out --server, --clients and --peers")
        from fedshare.identity import owner

        new = not (folder / "owner" / "owner.key").exists()
        return [owner.make(folder, passphrase(options.passphrase, new))]
    if options.peers is not None and options.clients is not None:
        raise UserError("--peers: makes the folders of clients 0 to N-1, too: leave out --clients")
    if options.peers is None and None in given:
        raise UserError("--server and --clients, or --peers: required (--owner makes an owner's key pair alone)")
    secret = passphrase(options.passphrase, new=not (folder / "ca" / "ca.key").exists())
    hosts = options.server.split(",") if options.server is not None else None
    peers = options.peers is not None
    return make(folder, hosts, options.peers if peers else options.clients, options.days, secret, peers)


def _requesting(made: Parser) -> None:
    made.description = "Make a client's key on its own host, and a certificate request to send to the operator."
    made.add_argument("folder", metavar="DIR", help="the key is made in DIR/client-N, or kept if it exists")
    made.add_argument("--peer", action="store_true", help="for a peer: make and name a key to sign with, too")
    made.add_argument("--client", type=int, metavar="N", required=True, help="which client")


def _request(options: argparse.Namespace) -> list[str]:
    return enrolment.request(Path(options.folder), options.client, options.peer)


def _signing(made: Parser) -> None:
    made.description = "Certify the key of a request; also again, before the certificate expires."
    made.add_argument("folder", metavar="KEYS", help="the folder with the authority")
    made.add_argument("request", metavar="REQUEST", help="client-N.csr, made by `fedshare keys request`")
    made.add_argument("--client", type=int, metavar="N", help="refuse a request for any other client")
    made.add_argument("--replace", action="store_true", help="if the client has another key, revoke that key")
    _days(made)
    _passphrase(made)


def _sign(options: argparse.Namespace) -> list[str]:
    secret = passphrase(options.passphrase)
    path = Path(options.request)
    return enrolment.sign(Path(options.folder), path, options.days, secret, options.replace, options.client)


def _accepting(made: Parser) -> None:
    made.description = "Install the certificate that the operator sent back next to its key."
    made.add_argument("folder", metavar="DIR", help="the folder given to `fedshare keys request`")
    made.add_argument("certificates", metavar="FILE", help="client-N.pem, made by `fedshare keys sign`")


def _accept(options: argparse.Namespace) -> list[str]:
    return enrolment.accept(Path(options.folder), Path(options.certificates))


def _revoking(made: Parser) -> None:
    made.description = "Refuse a client from now on. A running server disconnects it within seconds."
    made.add_argument(
        "folder", metavar="KEYS", help="the server's folder, which contains the list, or its parent folder"
    )
    made.add_argument(
        "whom",
        nargs="+",
        metavar="WHO",
        help="a client's number: refuses all its certificates; client-N or a certificate's file: refuses that key",
    )
    made.add_argument("--why", default="", metavar="TEXT", help="reason, noted in the list")
    made.add_argument("--undo", action="store_true", help="take them off the list")


def _revoke(options: argparse.Namespace) -> list[str]:
    return enrolment.revoke(Path(options.folder), options.whom, options.why, options.undo)


def _days(made: Parser) -> None:
    made.add_argument(
        "--days", type=int, default=_DAYS, help=f"validity of the certificates in days (default: {_DAYS})"
    )


def _passphrase(made: Parser) -> None:
    made.add_argument("--passphrase", metavar="FILE", nargs="?", const="", help=PASSPHRASE)
