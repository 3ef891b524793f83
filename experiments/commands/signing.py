"""`fedshare sign`, and the signature part of `fedshare verify`."""

from pathlib import Path

from fedshare.errors import UserError
from fedshare.identity import owner
from fedshare.identity.owner import Signature
from fedshare.runs import RunFolder, unwritten, verify


def sign(run: str, key: str, secret: bytes | None) -> None:
    """Sign the last seal of an intact run."""
    folder = RunFolder.open(run)
    with folder.lock():
        whole, sentence = verify(folder)
        if not whole:
            raise UserError(f"{sentence}; only what is whole is signed")
        if not folder.seals.exists():
            raise UserError(f"{run}: has no seal that could be signed: it was made before there were seals")
        if lost := unwritten(folder, folder.links()):
            raise UserError(f"{run}: {lost[0]} is sealed and missing: `fedshare resume {run}` first")
        signature = owner.sign(folder.seals.read()[-1].digest, Path(key), secret)
        signature.write(folder.signature)
    print(f"{run}: signed with the key {signature.key}, up to round {len(folder.links())}")


def signature_flaw(folder: RunFolder, key: str) -> str | None:
    """Return why the owner of the public key `key` has not signed the intact `folder` as it is; None if they have."""
    if not folder.signature.exists():
        return "is not signed"
    signature = Signature.read(folder.signature)
    if wrong := owner.flaw(signature, Path(key)):
        return wrong
    if not folder.seals.exists():
        return "is signed, but its seal is gone"
    seals = folder.seals.read()
    if signature.seal == seals[-1].digest:
        lost = unwritten(folder, folder.links())
        return f"lacks {lost[0]}, which is signed" if lost else None
    for place, seal in enumerate(seals, 1):
        if signature.seal == seal.digest:
            round = max((before.round or 0 for before in seals[:place]), default=0)
            return f"went on after it was signed, which was after round {round}"
    return "was changed after it was signed: its seal is another"


def signatures(folders: list[RunFolder], key: str | None) -> tuple[bool, str]:
    """Return whether all runs are signed with `key`, if given, and a message."""
    if key is None:
        signed = [str(folder.path) for folder in folders if folder.signature.exists()]
        return True, f"; {', '.join(signed)}: signed, but not checked (--key owner.pub)" if signed else ""
    for folder in folders:
        if wrong := signature_flaw(folder, key):
            return False, f"{folder.path}: {wrong}"
    return True, f"; signed with the key of {key}"
