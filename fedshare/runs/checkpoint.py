"""Checkpoints, from which a run can resume to the same bits.

``round-000010.safetensors`` holds the server's and every client's memory; ``round-000010.json``, written after it,
contains its SHA-256 and makes it valid. The last two are kept.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.machine.files import write_atomically, writing
from fedshare.state import State, pack, unpack

FORMAT = 1
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    round: int
    digest: str  # of the chain, after this round
    server: State
    clients: dict[int, State]
    remote: bool = False  # clients keep their own memories: `clients` holds only the ``round`` of each


def save(folder: Path, checkpoint: Checkpoint, keep: int = KEPT) -> None:
    """Write `checkpoint` to `folder`, then remove all but the last `keep`."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # One tensor of bytes per client: the size of the header must not grow with clients times tensors.
    clients = {client: _bytes(pack(state)) for client, state in checkpoint.clients.items()}
    data = pack({"server": checkpoint.server, "clients": clients})
    name = f"round-{checkpoint.round:06d}"
    write_atomically(folder / f"{name}.safetensors", data)
    manifest: dict[str, Any] = {"format": FORMAT, "round": checkpoint.round, "digest": checkpoint.digest}
    manifest["remote"] = checkpoint.remote
    manifest |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_atomically(folder / f"{name}.json", json.dumps(manifest, indent=1) + "\n")
    for old in _manifests(folder)[keep:]:
        old.unlink()  # first, so that a half-removed checkpoint is invalid
    kept = {path.stem for path in _manifests(folder)}
    for path in folder.iterdir():
        if path.stem not in kept:  # of those just removed, or left by a crash within this function
            path.unlink()


def rounds(folder: Path) -> list[int]:
    """Return the rounds that have a checkpoint, the latest first."""
    return [int(path.stem.removeprefix("round-")) for path in _manifests(folder)]


def load(folder: Path, round: int) -> Checkpoint:
    """Return the checkpoint of `round`. Raises UserError that says what is damaged, rather than return a part."""
    return _load(_path(folder, round))


def latest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest intact checkpoint; `warn` is called for damaged ones. None if there never was one."""
    damaged = ""
    for path in _manifests(folder):
        try:
            checkpoint = _load(path)
        except UserError as error:
            if damaged:
                warn(damaged)
            damaged = str(error)
            continue
        if damaged:
            warn(f"{damaged}; using round {checkpoint.round}")
        return checkpoint
    if damaged:
        raise UserError(f"{damaged}; there is no other")
    return None


def read_damaged(folder: Path, round: int) -> tuple[State, dict[int, State]] | None:
    """Return the memories in a checkpoint without checking its checksum, for diagnosis; None if unreadable."""
    try:
        return _memories(_path(folder, round).with_suffix(".safetensors").read_bytes())
    except (OSError, ValueError, KeyError):
        return None


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _memories(data: bytes) -> tuple[State, dict[int, State]]:
    state = unpack(data)
    if not isinstance(state.get("server"), dict) or not isinstance(state.get("clients"), dict):
        raise ValueError("it holds no memories of a server and its clients")
    return state["server"], {client: unpack(packed.numpy().tobytes()) for client, packed in state["clients"].items()}


def _path(folder: Path, round: int) -> Path:
    return folder / f"round-{round:06d}.json"


def _manifests(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"round-\d{6,}\.json", path.name)), reverse=True)


def _load(path: Path) -> Checkpoint:
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] > FORMAT:
            raise UserError(f"checkpoint {path} has format {manifest['format']}; this version reads up to {FORMAT}")
        data = path.with_suffix(".safetensors").read_bytes()
        if len(data) != manifest["bytes"]:
            raise ValueError(f"it has {len(data)} bytes, not {manifest['bytes']}")
        if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
            raise ValueError("its SHA-256 is another")
        if (round := manifest["round"]) != int(path.stem.removeprefix("round-")):
            raise ValueError(f"its round is {round}")
        return Checkpoint(round, manifest["digest"], *_memories(data), remote=manifest.get("remote", False))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path.with_suffix('.safetensors')} is damaged: {error}") from error
