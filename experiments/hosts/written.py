"""A peer's player that writes down what it has trained before anyone is sent it."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from fedshare.forms.wire import from_bytes, to_bytes
from fedshare.machine.files import write_atomically
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.peers.gathering import Player
from fedshare.state import State, pack, unpack


class Written:
    """A round that was trained before a crash is not trained again: its upload and the client's memory are on disk.

    So a retry sends the same bytes, even where training does not repeat to the bit.
    """

    def __init__(self, player: Player, path: Path) -> None:
        self._player, self._path = player, path

    @property
    def state(self) -> State:
        return self._player.state

    @state.setter
    def state(self, state: State) -> None:
        self._player.state = state

    def __call__(self, purpose: Purpose, round: int, download: Payload) -> Payload:
        if purpose is not Purpose.TRAIN:
            return self._player(purpose, round, download)
        if found := self._read(round):
            upload, self._player.state = found
            return upload
        upload = self._player(purpose, round, download)
        message = bytearray(to_bytes(upload))
        held: dict[str, Any] = {"round": round, "memory": self._player.state}
        held["upload"] = torch.frombuffer(message, dtype=torch.uint8)
        data = pack(held)
        write_atomically(self._path, hashlib.sha256(data).digest() + data)
        return upload

    def _read(self, round: int) -> tuple[Payload, State] | None:
        """Return what was written in this round; None if nothing was, or not all of it."""
        try:
            whole = self._path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(whole[32:]).digest() != whole[:32]:
            return None
        held = unpack(whole[32:])
        if held["round"] != round:
            return None
        return from_bytes(held["upload"].numpy().tobytes()), held["memory"]
