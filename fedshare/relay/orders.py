"""The operator's orders to a running relay: files in a folder beside the log, which it carries out and removes."""

import json
import re
from pathlib import Path

from fedshare.errors import brief
from fedshare.machine.files import private_folder, write_atomically
from fedshare.relay.entries import REASON

_NAME = re.compile(r"remove-([0-9]{1,5})\.json")


def order_removal(folder: Path, peer: int, reason: str) -> Path:
    """Ask the relay of the log in `folder` to remove a peer; return the file that says so."""
    private_folder(folder / "orders")
    path = folder / "orders" / f"remove-{peer}.json"
    write_atomically(path, json.dumps({"reason": brief(reason, REASON)}), 0o600)
    return path


def removals(folder: Path) -> list[tuple[Path, int, str]]:
    """Return the orders that are due: the file, the peer and the reason. A damaged one has a reason, too."""
    found = list[tuple[Path, int, str]]()
    if (folder / "orders").is_dir():
        for path in sorted((folder / "orders").iterdir()):
            if match := _NAME.fullmatch(path.name):
                try:
                    reason = str(json.loads(path.read_text())["reason"])
                except (OSError, ValueError, KeyError, TypeError):
                    reason = "by the operator"
                found.append((path, int(match[1]), brief(reason, REASON)))
    return found
