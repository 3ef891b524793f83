"""What a peer says under its signature, and what it thinks of what others say."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedshare.errors import brief, first_line
from fedshare.identity.signing import SIGNATURE, Signer, Verifier, signed_part
from fedshare.ledger.entries import TwoThings
from fedshare.machine.files import write_atomically

ENTRY = 1  # the kind of a signed part that is a ledger's entry; its number is its round
REMOVAL = 2  # and of the operator's order to take out the entries of a peer


def removal_part(run: bytes, peer: int) -> bytes:
    """Return what the operator signs to remove a peer."""
    return signed_part(run, peer, 0, 0, REMOVAL, b"")


@dataclass
class Signed:
    """A peer's `Voice` in the run named `run`. `public` gives any peer's signing key; `proofs` is a folder."""

    run: bytes
    me: int
    signer: Signer
    public: Callable[[int], bytes | None]
    proofs: Path
    say: Callable[[str], None]
    operator: Verifier | None = None  # who may remove peers
    orders: Path | None = None  # a file with the operator's orders, read in each round
    _verifiers: dict[int, Verifier] = field(default_factory=dict)

    def sign(self, round: int, codes: bytes) -> bytes:
        return self.signer.sign(signed_part(self.run, self.me, round, round, ENTRY, codes))

    def removals(self) -> list[tuple[int, bytes]]:
        if self.orders is None or not self.orders.exists():
            return []
        try:
            found = [(int(peer), bytes.fromhex(key)) for peer, key in json.loads(self.orders.read_text()).items()]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            self.say(f"{self.orders}: not read: {first_line(error)}")
            return []
        return [(peer, signature) for peer, signature in found if self.genuine(0, peer, signature)]

    def genuine(self, round: int, peer: int, said: bytes) -> bool:
        if round == 0:
            signature = said[-SIGNATURE:]
            return self.operator is not None and self.operator.accepts(removal_part(self.run, peer), signature)
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
