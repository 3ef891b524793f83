"""A client's half of an exchange, on whatever brings it Flower's messages."""

import hashlib
import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

import fedshare
from fedshare._proto.payload_pb2 import Attendance, Initial, Invitation, Leaf, Reply, Request
from fedshare.errors import UserError
from fedshare.forms import wire
from fedshare.machine.files import on_disk, private_folder, sweep, write_atomically
from fedshare.machine.threads import threads
from fedshare.network import Purpose
from fedshare.population import Population
from fedshare.tensors import Tensors
from fedshare.transport.flower.memory import Memory, Record
from fedshare.transport.memories import take_part

INITIAL = "initial"  # the one group of what of the initial model is sent


@dataclass(frozen=True)
class Terms:
    """What everyone in a run must have alike. The digests are SHA-256."""

    config: bytes  # of what server and clients must share
    initial: bytes  # of the model everyone starts from
    weights: bytes = b""  # of what of that comes from a file; empty: nothing does
    drawn: Callable[[], Tensors] = field(default=dict, compare=False)  # the rest of it, which may be sent

    @classmethod
    def of(cls, config: str, population: Population) -> "Terms":
        """`config`: what of it everyone must have alike, as one text."""
        weights = population.given.fingerprint if population.given else ""
        initial = population.scratch.fingerprint
        digests = hashlib.sha256(config.encode()).digest(), bytes.fromhex(initial), bytes.fromhex(weights)
        return cls(*digests, population.drawn)

    @property
    def short(self) -> bytes:
        return hashlib.sha256(self.config + self.initial).digest()[:8]

    def invitation(self) -> Invitation:
        made = Invitation(version=fedshare.__version__, config_sha256=self.config)
        made.initial_sha256, made.weights_sha256 = self.initial, self.weights
        return made


@dataclass
class Participant:
    """Clients on one population: one in a deployment, all of them in one process."""

    population: Population
    terms: Terms
    folder: Path
    device: str = "cpu"  # as people are told
    threads: int = 1  # one gives the bits of a simulation
    memories: dict[tuple[str, int], Memory] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)  # by run: the lock on what is remembered of it

    def attend(self, id: int, invitation: Invitation) -> Attendance:
        """Join a run, or say that it takes the server's initial model.

        Raises UserError where version, config or weights are others than the server's.
        """
        if invitation.version != fedshare.__version__:
            raise UserError(f"it runs fedshare {fedshare.__version__}, the server fedshare {invitation.version}")
        ours, theirs = self.terms.config.hex()[:12], invitation.config_sha256.hex()[:12]
        if self.terms.config != invitation.config_sha256:
            raise UserError(f"its config has the digest {ours}, the server's {theirs}")
        if self.terms.weights != invitation.weights_sha256:
            given, theirs = self.population.given, invitation.weights_sha256.hex()[:12]
            mine = f"weights={given.name} with the digest {self.terms.weights.hex()[:12]}" if given else "no weights"
            raise UserError(f"it starts from {mine}, the server from {f'those with {theirs}' if theirs else 'none'}")
        if id >= len(self.population.shares):
            raise UserError(f"there are {len(self.population.shares)} clients, so there is no client {id}")
        share, another = self.population.shares[id], self.terms.initial != invitation.initial_sha256
        attendance = Attendance(client=id, host=platform.node(), device=self.device, needs_initial=another)
        attendance.examples, attendance.tests, attendance.validation = share.size, share.tests, share.validations
        return attendance

    def begin(self, id: int, initial: Initial, data: bytes) -> Attendance:
        """Join a run with the initial model of its server, and keep that for the run's other processes here."""
        tensors = wire.unpack(initial.model, data).tensors.get(INITIAL, {})
        self._begin(tensors)
        attendance = self.attend(id, initial.invitation)
        if attendance.needs_initial:
            ours, theirs = self.terms.initial.hex()[:12], initial.invitation.initial_sha256.hex()[:12]
            raise UserError(f"its initial model has the digest {ours}, the server's {theirs}, which it was sent")
        kept = self._kept(initial.run)
        with self._on_disk(kept.parent, "it has trained nothing yet"):
            private_folder(kept.parent)
            sweep(kept.parent, shared=True)
            write_atomically(kept, save({name: tensor.clone() for name, tensor in tensors.items()}), mode=0o600)
        self._hold(initial.run.hex())
        return attendance

    def _on_disk(self, folder: Path, safe: str) -> AbstractContextManager[None]:
        """Raise DiskError where this host's folder for a client, or for a run, cannot be written."""
        how = "once it can be written, the same command goes on with the run"
        return on_disk(folder, lambda: f"{safe}; {how}")

    def _begin(self, tensors: Tensors) -> None:
        try:
            self.population.scratch.begin(tensors)
        except ValueError as error:
            raise UserError(f"the server's initial model is another than its config makes here: {error}") from error
        self.terms = replace(self.terms, initial=bytes.fromhex(self.population.scratch.fingerprint))

    def _kept(self, run: bytes) -> Path:
        return self.folder / run.hex() / "initial.safetensors"

    def answer(self, id: int, purpose: Purpose, request: Request, data: bytes) -> tuple[Reply, bytearray]:
        """Do what is asked, starting from the memory that the server counts on.

        What private training has spent is counted beside that memory: an answer that the server never took is forgotten
        there, and somebody may have seen it.
        """
        if request.terms != self.terms.short and (kept := self._kept(request.run)).exists():
            try:  # a process that is new, or that was in another run
                self._begin(load(kept.read_bytes()))
            except SafetensorError as error:
                raise UserError(f"{kept} is damaged: {error}") from error
        if request.terms != self.terms.short:
            raise UserError("its config or its initial model is not the server's")
        download = wire.unpack(request.download, data)
        base = request.base
        safe = f"client {id}'s memory of round {base} is safe" if base else f"client {id} has no memory to lose"
        with self._on_disk(self._folder(request.run.hex(), id), safe):
            memory = self._memory(request.run.hex(), id)
            state = memory.recall(base, request.keep)
            private = self.population.training.private and purpose is Purpose.TRAIN
            record = Record(memory.folder, self.terms.config) if private else None
            with threads(self.threads):
                answer = self.population.answer(purpose, request.round, id, download, state, record)
            if purpose is Purpose.TRAIN:
                memory.save(request.round, answer.state)
                self._hold(request.run.hex())
        upload, tensors = wire.pack(answer.payload)
        leaves = [Leaf(path=path, sha256=bytes.fromhex(digest)) for path, digest in answer.digests.items()]
        return Reply(upload=upload, memory=leaves), tensors

    def _memory(self, run: str, id: int) -> Memory:
        if (run, id) not in self.memories:
            for other in [key for key in self.memories if key[0] != run]:
                del self.memories[other]  # that run is over here
            for other_run in [held for held in self.held if held != run]:
                os.close(self.held.pop(other_run))
            if (of_run := self.folder / run).exists():  # an older version left it open to others
                private_folder(of_run)
            self._hold(run)
            self.memories[run, id] = Memory(self._folder(run, id))
        return self.memories[run, id]

    def _hold(self, run: str) -> None:
        """Let nobody delete what is remembered, once there is something."""
        if run not in self.held and (self.folder / run).exists():
            descriptor = take_part(self.folder / run)
            if descriptor is not None:
                self.held[run] = descriptor

    def _folder(self, run: str, id: int) -> Path:
        return self.folder / run / f"client-{id}"
