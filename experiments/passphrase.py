"""The passphrase of an owner's key: from a file, or asked for; never from the command line, which others can see."""

import getpass
from pathlib import Path

from fedshare.errors import UserError


def passphrase(given: str | None) -> bytes | None:
    """What `--passphrase` says: nothing, to ask for it, or the file whose first line it is."""
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
        except EOFError:
            raise UserError("--passphrase: nobody is there to be asked; name a file") from None
    if not found:
        raise UserError("--passphrase: is empty")
    return found.encode()
