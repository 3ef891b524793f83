"""`fedshare keys`: make what is lacking, and request, sign, accept, revoke."""

import argparse
from collections.abc import Callable
from pathlib import Path

from fedshare.errors import UserError
from fedshare.experiments.commands.passphrase import passphrase
from fedshare.experiments.options import PASSPHRASE, Parser
from fedshare.identity import enrolment
from fedshare.identity.keys import make

_DAYS = 365
_EPILOG = """a client whose key is made on its own host, and the end of any client's:
  fedshare keys request DIR --client 3       on its host: a key, which stays there, and DIR/client-3/client-3.csr
  fedshare keys sign KEYS client-3.csr       where the authority is: KEYS/client-3/client-3.pem
  fedshare keys accept DIR client-3.pem      on its host: for `fedshare client ... --keys DIR`
  fedshare keys revoke KEYS 3                no certificate of client 3 is let in any more
  fedshare keys revoke KEYS client-3         the key that it has now is not: another may be signed
each has a --help; a DIR by one of these names is ./DIR
"""
_Do = Callable[[argparse.Namespace], list[str]]


def keys(arguments: list[str]) -> list[str]:
    """What was done, in lines."""
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
    made.add_argument("folder", metavar="DIR", help="what it lacks is made, what it has is kept")
    made.add_argument("--server", metavar="HOST,...", help="the server's names or addresses")
    made.add_argument("--clients", type=int, metavar="N", help="make client-0 to client-(N-1)")
    _days(made)
    made.add_argument("--owner", action="store_true", help="make the key pair with which an owner signs runs")
    _passphrase(made)


def _make(options: argparse.Namespace) -> list[str]:
    folder, given = Path(options.folder), [options.server, options.clients]
    if options.owner:
        if given != [None, None]:
            raise UserError("--owner: makes no certificates: leave out --server and --clients")
        from fedshare.identity import owner

        new = not (folder / "owner" / "owner.key").exists()
        return [owner.make(folder, passphrase(options.passphrase, new))]
    if None in given:
        raise UserError("--server and --clients: required (--owner makes an owner's key pair, and needs neither)")
    secret = passphrase(options.passphrase, new=not (folder / "ca" / "ca.key").exists())
    return make(folder, options.server.split(","), options.clients, options.days, secret)


def _requesting(made: Parser) -> None:
    made.description = "Make a client's key on its own host, and a request for a certificate that goes to the operator."
    made.add_argument("folder", metavar="DIR", help="the key is made in DIR/client-N, or kept there")
    made.add_argument("--client", type=int, metavar="N", required=True, help="which client")


def _request(options: argparse.Namespace) -> list[str]:
    return enrolment.request(Path(options.folder), options.client)


def _signing(made: Parser) -> None:
    made.description = "Certify the key of a request; also a second time, before the first certificate ends."
    made.add_argument("folder", metavar="KEYS", help="where the authority is")
    made.add_argument("request", metavar="REQUEST", help="what `fedshare keys request` has made: client-N.csr")
    made.add_argument("--client", type=int, metavar="N", help="refuse a request to be any other client")
    made.add_argument("--replace", action="store_true", help="where the client has another key, revoke that one")
    _days(made)
    _passphrase(made)


def _sign(options: argparse.Namespace) -> list[str]:
    secret = passphrase(options.passphrase)
    path = Path(options.request)
    return enrolment.sign(Path(options.folder), path, options.days, secret, options.replace, options.client)


def _accepting(made: Parser) -> None:
    made.description = "Put the certificate that the operator has sent back beside its key."
    made.add_argument("folder", metavar="DIR", help="as it was given to `fedshare keys request`")
    made.add_argument("certificates", metavar="FILE", help="what `fedshare keys sign` has made: client-N.pem")


def _accept(options: argparse.Namespace) -> list[str]:
    return enrolment.accept(Path(options.folder), Path(options.certificates))


def _revoking(made: Parser) -> None:
    made.description = "Let a client in no more. A server that runs cuts it off within seconds."
    made.add_argument(
        "folder", metavar="KEYS", help="the server's folder, which has its list, or what holds that folder"
    )
    made.add_argument(
        "whom",
        nargs="+",
        metavar="WHO",
        help="a client's number: none of its certificates is let in; client-N, or a certificate's file: its key is not",
    )
    made.add_argument("--why", default="", metavar="TEXT", help="noted in the list")
    made.add_argument("--undo", action="store_true", help="take them off the list")


def _revoke(options: argparse.Namespace) -> list[str]:
    return enrolment.revoke(Path(options.folder), options.whom, options.why, options.undo)


def _days(made: Parser) -> None:
    made.add_argument("--days", type=int, default=_DAYS, help=f"how long the certificates last (default: {_DAYS})")


def _passphrase(made: Parser) -> None:
    made.add_argument("--passphrase", metavar="FILE", nargs="?", const="", help=PASSPHRASE)
