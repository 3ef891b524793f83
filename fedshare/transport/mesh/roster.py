"""Where the peers of a run are, as each of them has signed it, and the keys with which they sign."""

import time
from collections.abc import Callable, Mapping

from fedshare._proto.mesh_pb2 import Meeting, Whereabouts
from fedshare.errors import UserError
from fedshare.identity import certificates
from fedshare.identity.identity import Identity
from fedshare.identity.signing import SIGNATURE, Signer, Verifier, signed_part
from fedshare.transport.stream.diagnose import split

KIND = 200  # of a signature under an address, beside the kinds of messages
TOGETHER = 100  # peers in one frame
_LONGEST, _PEM = 261, 8192  # of an address, and of a certificate
_LATEST = 1 << 62  # a counter


class Roster:
    """`hints` are addresses that the config or a neighbour gives; what a peer itself has signed goes before."""

    def __init__(
        self,
        me: int,
        run: bytes,
        peers: int,
        identity: Identity | None,
        signer: Signer,
        hints: Mapping[int, str],
        say: Callable[[str], None],
    ) -> None:
        self._me, self._run, self._peers = me, run, peers
        self._identity, self._signer, self._hints, self._say = identity, signer, dict(hints), say
        self._known: dict[int, Whereabouts] = {}
        self._keys = {me: signer.public}
        self._tried: dict[int, bool] = {}  # by peer: whether its hint was given the last time

    def announce(self, address: str) -> None:
        """Sign that this peer is at `address`."""
        counter = max(time.time_ns() // 1000, self._known[self._me].counter + 1 if self._me in self._known else 0)
        pem = self._identity.certificate if self._identity else b""
        signature = self._signer.sign(self._signed(self._me, counter, address))
        own = Whereabouts(peer=self._me, address=address, counter=counter, certificate=pem, signature=signature)
        self._known[self._me] = own

    def address(self, peer: int) -> str | None:
        """An address of a peer, if one is known: what it has signed and what else was said of it, in turn."""
        signed = self._known[peer].address if peer in self._known else None
        hint = self._hints.get(peer)
        if signed is None or hint is None or signed == hint:
            return signed or hint
        self._tried[peer] = not self._tried.get(peer, False)
        return hint if self._tried[peer] else signed

    def shown(self, peer: int) -> str:
        """The address of a peer, for people; empty if none is known."""
        return self._known[peer].address if peer in self._known else self._hints.get(peer, "")

    def certificate(self, peer: int) -> bytes | None:
        """The certificate of a peer, in PEM, if it is known."""
        return (self._known[peer].certificate or None) if peer in self._known else None

    def key(self, peer: int) -> bytes | None:
        """The public signing key of a peer; None if it was never heard of."""
        if self._identity is None and 0 <= peer < self._peers:
            return Signer.unprotected(f"peer {peer}").public
        return self._keys.get(peer)

    def all(self) -> list[Meeting]:
        """All that are known, in pieces that fit into frames."""
        known = [self._known[peer] for peer in sorted(self._known)]
        pieces = range(0, len(known), TOGETHER)
        return [Meeting(run=self._run, peers=known[start : start + TOGETHER]) for start in pieces]

    def learn(self, said: Meeting) -> Meeting | None:
        """Take what others say; return what of it is new. One bad entry fails alone."""
        new = list[Whereabouts]()
        for one in said.peers if said.run == self._run else ():
            known = self._known.get(one.peer)
            if known is not None and one.counter <= known.counter:
                continue
            try:
                key = self._verified(one)
            except UserError as error:
                self._say(f"an address that was passed on is not believed: {error}")
                continue
            if one.peer == self._me:  # of this peer's life before
                self._known[self._me].counter = one.counter
                self.announce(self._known[self._me].address)
                new.append(self._known[self._me])
                continue
            self._known[one.peer] = one
            self._keys[one.peer] = key
            new.append(one)
        return Meeting(run=self._run, peers=new) if new else None

    def _verified(self, one: Whereabouts) -> bytes:
        """The key of a peer that has signed where it is. Raises UserError."""
        whose = f"peer {one.peer}"
        if one.peer >= self._peers or one.counter > _LATEST or len(one.signature) != SIGNATURE:
            raise UserError(f"{whose}: there are {self._peers} peers, 0 to {self._peers - 1}, with a signature each")
        if len(one.address) > _LONGEST or len(one.certificate) > _PEM:
            raise UserError(f"{whose} has an address or a certificate that is too long")
        split(one.address)
        if self._identity:
            certificates.require_issued(one.certificate, self._identity.ca, whose)
            if certificates.client_id(one.certificate) != one.peer:
                raise UserError(f"{whose} shows a certificate that is not its own")
            key = certificates.signing_key_of(one.certificate)
            if key is None:
                raise UserError(f"{whose} has a certificate that names no signing key: `fedshare keys --peers`")
        else:
            key = Signer.unprotected(whose).public
        if not Verifier(key).accepts(self._signed(one.peer, one.counter, one.address), one.signature):
            raise UserError(f"{whose} has not signed this address")
        return key

    def _signed(self, peer: int, counter: int, address: str) -> bytes:
        return signed_part(self._run, peer, counter, 0, KIND, address.encode())
