"""The passphrase of a key: from a file or a prompt; never from the command line, which others can see."""

import getpass
from pathlib import Path

from fedshare.errors import UserError


def passphrase(given: str | None, new: bool = False) -> bytes | None:
    """Return the passphrase: prompted if `--passphrase` has no value, else the first line of that file.

    A `new` one is prompted twice.
    """
    if given is None:
        return None
    if given:
        try:
            found = Path(given).read_text().partition("\n")[0]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--passphrase {given}: cannot be read: {error}") from error
    else:
        try:
            found = getpass.getpass("passphrase: ")
            if new and found and getpass.getpass("the same again: ") != found:
                raise UserError("--passphrase: the two differ")
        except EOFError:
            raise UserError("--passphrase: nobody is there to be asked; name a file") from None
    if not found:
        raise UserError("--passphrase: is empty")
    return found.encode()
