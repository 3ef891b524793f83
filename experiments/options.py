"""Command-line parsing shared by all commands."""

import argparse
from typing import NoReturn

from fedshare.errors import UserError

PASSPHRASE = "passphrase of the key: the first line of FILE, or prompted for"


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


TLS = "the folder made by `fedshare keys`, or this participant's part of it"


def connection(made: Parser) -> None:
    """Add the flags of a connection."""
    made.add_argument("--keys", metavar="DIR", help=TLS)
    made.add_argument("--insecure", action="store_true", help="allow connections to other machines without TLS")
    made.add_argument("--heartbeat", type=float, default=10.0, metavar="S", help="seconds between pings")
