"""The passphrase of a key: from a file, or asked for; never from the command line, which others can see."""

import getpass
from pathlib import Path

from fedshare.errors import UserError


def passphrase(given: str | None, new: bool = False) -> bytes | None:
    """What `--passphrase` says: nothing, to ask for it, or the file whose first line it is.

    A `new` one is asked for twice.
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
