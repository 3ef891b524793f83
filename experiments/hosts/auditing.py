"""The audit log part of `fedshare verify`."""

from pathlib import Path

from fedshare.errors import UserError
from fedshare.experiments.hosts.federation import RUN_ID
from fedshare.runs import RunFolder, audit


def audited(folders: list[RunFolder], elsewhere: str | None) -> tuple[bool, str]:
    """Return whether no log shows signs of alteration, and a message."""
    if elsewhere and len(folders) > 1:
        raise UserError("--audit: is of one run")
    said = []
    for folder in folders:
        path = Path(elsewhere) if elsewhere else folder.path / audit.NAME
        if not path.is_file():
            if elsewhere:
                raise UserError(f"--audit {elsewhere}: no such file")
            said += ["no audit log"] if (folder.path / RUN_ID).exists() else []  # no client joins a simulation
        elif wrong := audit.flaw(path, len(folder.links())):
            return False, f"{folder.path}: {wrong}"
        else:
            said.append(f"audit log whole, {sum(1 for _ in audit.read(path))} entries")
    return True, "".join(f"; {one}" for one in said)
