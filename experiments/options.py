"""Command-line parsing shared by all commands."""

import argparse
from typing import NoReturn

from fedshare.errors import UserError

PASSPHRASE = "passphrase of the key: the first line of FILE, or prompted for"


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
