"""A client's half of an exchange, on whatever brings it Flower's messages."""

import hashlib
import platform
from dataclasses import dataclass, field
from pathlib import Path

import fedshare
from fedshare import wire
from fedshare._proto.payload_pb2 import Attendance, Invitation, Leaf, Reply, Request
from fedshare.errors import UserError
from fedshare.flower.memory import Ledger, Memory
from fedshare.network import Purpose
from fedshare.simulation import Population
from fedshare.threads import threads


@dataclass(frozen=True)
class Terms:
    """What everyone in a run must have alike. The digests are SHA-256."""

    config: bytes  # of what server and clients must share
    initial: bytes  # of the model everyone starts from

    @classmethod
    def of(cls, config: str, population: Population) -> "Terms":
        """`config`: what of it everyone must have alike, as one text."""
        return cls(hashlib.sha256(config.encode()).digest(), bytes.fromhex(population.scratch.fingerprint))

    @property
    def short(self) -> bytes:
        return hashlib.sha256(self.config + self.initial).digest()[:8]


@dataclass
class Participant:
    """Clients on one population: one in a deployment, all of them in one process."""

    population: Population
    terms: Terms
    folder: Path
    device: str = "cpu"  # as people are told
    threads: int = 1  # one gives the bits of a simulation
    memories: dict[tuple[str, int], Memory] = field(default_factory=dict)

    def attend(self, id: int, invitation: Invitation) -> Attendance:
        """Join a run. Raises UserError where version, config or initial model are others than the server's."""
        if invitation.version != fedshare.__version__:
            raise UserError(f"it runs fedshare {fedshare.__version__}, the server fedshare {invitation.version}")
        for what, ours, theirs in (
            ("config", self.terms.config, invitation.config_sha256),
            ("initial model", self.terms.initial, invitation.initial_sha256),
        ):
            if ours != theirs:
                raise UserError(f"its {what} has the digest {ours.hex()[:12]}, the server's {theirs.hex()[:12]}")
        if id >= len(self.population.shares):
            raise UserError(f"there are {len(self.population.shares)} clients, so there is no client {id}")
        size = self.population.shares[id].size
        return Attendance(client=id, examples=size, host=platform.node(), device=self.device)

    def answer(self, id: int, purpose: Purpose, request: Request, data: bytes) -> tuple[Reply, bytearray]:
        """Do what is asked, starting from the memory that the server counts on.

        What private training has spent is counted beside that memory: an answer that the server never took is forgotten
        there, and somebody may have seen it.
        """
        if request.terms != self.terms.short:
            raise UserError("its config or its initial model is not the server's")
        memory = self._memory(request.run.hex(), id)
        state = memory.recall(request.base, request.keep)
        download = wire.unpack(request.download, data)
        private = self.population.training.private and purpose is Purpose.TRAIN
        ledger = Ledger(memory.folder, self.terms.config) if private else None
        with threads(self.threads):
            answer = self.population.answer(purpose, request.round, id, download, state, ledger)
        if purpose is Purpose.TRAIN:
            memory.save(request.round, answer.state)
        upload, tensors = wire.pack(answer.payload)
        leaves = [Leaf(path=path, sha256=bytes.fromhex(digest)) for path, digest in answer.digests.items()]
        return Reply(upload=upload, memory=leaves), tensors

    def _memory(self, run: str, id: int) -> Memory:
        if (run, id) not in self.memories:
            for other in [key for key in self.memories if key[0] != run]:
                del self.memories[other]  # that run is over here
            self.memories[run, id] = Memory(self.folder / run / f"client-{id}")
        return self.memories[run, id]
