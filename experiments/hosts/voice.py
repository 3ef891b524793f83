"""What a peer says under its signature, and what it thinks of what others say."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedshare.errors import brief
from fedshare.identity.signing import SIGNATURE, Signer, Verifier, signed_part
from fedshare.ledger.entries import TwoThings
from fedshare.machine.files import write_atomically

ENTRY = 1  # the kind of a signed part that is a ledger's entry; its number is its round


@dataclass
class Signed:
    """A peer's `Voice` in the run named `run`. `public` gives any peer's signing key; `proofs` is a folder."""

    run: bytes
    me: int
    signer: Signer
    public: Callable[[int], bytes | None]
    proofs: Path
    say: Callable[[str], None]
    _verifiers: dict[int, Verifier] = field(default_factory=dict)

    def sign(self, round: int, codes: bytes) -> bytes:
        return self.signer.sign(signed_part(self.run, self.me, round, round, ENTRY, codes))

    def genuine(self, round: int, peer: int, said: bytes) -> bool:
        if peer not in self._verifiers:
            if (public := self.public(peer)) is None:
                return False
            self._verifiers[peer] = Verifier(public)
        codes, signature = said[:-SIGNATURE], said[-SIGNATURE:]
        return self._verifiers[peer].accepts(signed_part(self.run, peer, round, round, ENTRY, codes), signature)

    def doubt(self, peer: int, flaw: ValueError) -> None:
        self.say(f"a message of peer {peer} was not used: {brief(str(flaw))}")
        if isinstance(flaw, TwoThings):
            self._prove(flaw)

    def _prove(self, found: TwoThings) -> None:
        """Keep both statements: with the peer's public key anyone can check that it signed both."""
        path = self.proofs / f"peer-{found.peer}-round-{found.round}.json"
        if path.exists():
            return
        public = self.public(found.peer)
        proof = {
            "run": self.run.hex(),
            "peer": found.peer,
            "round": found.round,
            "key": public.hex() if public else None,
            "said": [
                {"codes": s[:-SIGNATURE].hex(), "signature": s[-SIGNATURE:].hex()} for s in (found.one, found.other)
            ],
        }
        self.proofs.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(proof, indent=1) + "\n")
        self.say(f"peer {found.peer} has signed two things in round {found.round}: {path} proves it")
