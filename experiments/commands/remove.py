"""`fedshare remove`: order that a peer's entries are taken out, signed by the owner."""

import json
from pathlib import Path

from fedshare.errors import UserError
from fedshare.experiments.hosts.participant import RUN_NAME
from fedshare.experiments.hosts.voice import REMOVALS, removal_part
from fedshare.identity import owner
from fedshare.identity.signing import RUN
from fedshare.machine.files import write_atomically


def remove(run: str, peers: list[int], key: str, passphrase: bytes | None) -> None:
    """Write the orders into the folder of one peer of the run, which passes them on. Raises UserError."""
    folder = Path(run)
    try:
        name = bytes.fromhex((folder / RUN_NAME).read_text())
        if len(name) != RUN:
            raise ValueError
    except (OSError, ValueError):
        raise UserError(
            f"{run}: is not the folder of a peer's run: {RUN_NAME} must hold {2 * RUN} hex digits"
        ) from None
    path = folder / REMOVALS
    try:
        orders = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is damaged: mend it, or move it away") from None
    for peer in peers:
        if peer < 0:
            raise UserError(f"--peer {peer}: must be at least 0")
        orders[str(peer)] = owner.signed(removal_part(name, peer), Path(key), passphrase).hex()
    write_atomically(path, json.dumps(orders) + "\n")
    print(f"{path}: orders the removal of {', '.join(map(str, peers))}; this peer passes it on in its next round")
