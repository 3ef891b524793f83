"""A peer's copy of a ledger as a set of entries that only grows: whoever has the same set has the same model.

An entry is what one peer said in one round. Its step and its directions depend on nothing else, and its integers are
added, so neither the order nor the time of its arrival matters (a grow-only set: Shapiro et al. 2011). The removal of a
peer is an entry, too, and takes all of that peer's entries out, those that are still on their way included.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]  # names of entries, ascending: ``round * peers + peer``; in round 0, the removal of the peer


class TwoThings(ValueError):
    """A peer has said two things in one round: `one` and `other` are codes and signatures."""

    def __init__(self, round: int, peer: int, one: bytes, other: bytes) -> None:
        super().__init__(f"peer {peer} said two things in round {round}")
        self.round, self.peer, self.one, self.other = round, peer, one, other


@dataclass
class Entries:
    """The entries that a peer has."""

    known: NDArray[np.bool_]  # ``[rounds + 1, peers]``; the first row has the removals
    codes: NDArray[np.uint8]  # ``[rounds + 1, peers, bytes of an entry]``; zero where nothing is known
    signed: int = 0  # the last so many bytes of an entry are its author's signature, and no part of the set's digest

    @classmethod
    def empty(cls, peers: int, width: int, signed: int = 0) -> "Entries":
        """Return a set without entries, each of which will have `width` bytes, and a signature of `signed`."""
        codes = np.zeros((1, peers, width + signed), dtype=np.uint8)
        return cls(np.zeros((1, peers), dtype=np.bool_), codes, signed)

    @property
    def peers(self) -> int:
        return self.known.shape[1]

    @property
    def removed(self) -> NDArray[np.bool_]:
        """Whether each peer is removed."""
        return self.known[0]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """The entries that make up the model, ``[rounds + 1, peers]``: measurements of peers that are not removed."""
        counted = self.known & ~self.removed
        counted[0] = False
        return counted

    def reach(self, rounds: int) -> None:
        """Make room for entries up to the round `rounds`."""
        if (more := rounds + 1 - len(self.known)) > 0:
            self.known = np.pad(self.known, ((0, more), (0, 0)))
            self.codes = np.pad(self.codes, ((0, more), (0, 0), (0, 0)))

    def say(self, round: int, peer: int, codes: bytes) -> Keys:
        """Add an entry of one's own, and return its name."""
        return self._include(np.array([round * self.peers + peer]), np.frombuffer(codes, dtype=np.uint8)[None])

    def remove(self, peer: int, signature: bytes = b"") -> Keys:
        """Add the removal of a peer, and return its name; none if it is known.

        `signature`: of who may remove peers, where entries are signed.
        """
        codes = bytes(self.codes.shape[2] - len(signature)) + signature
        return self._include(np.array([peer]), np.frombuffer(codes, dtype=np.uint8)[None])

    def names(self) -> Keys:
        """Return the names of all entries."""
        return np.flatnonzero(self.known)

    def code(self, name: int) -> bytes:
        """Return the codes of an entry, without its signature."""
        return self._said(self.codes.reshape(-1, self.codes.shape[2])[name]).tobytes()

    def digest(self) -> bytes:
        """Return the SHA-256 of the set: names and codes of its entries."""
        keys = self.names()
        return hashlib.sha256(keys.astype("<i8").tobytes() + self._said(self._codes(keys)).tobytes()).digest()

    def pack(self, keys: Keys) -> bytes:
        """Return these entries as a message: their number, the distances of their names, then their codes.

        Removals have none, unless entries are signed.
        """
        distances = np.diff(keys, prepend=-1) - 1
        measured = keys if self.signed else keys[keys >= self.peers]
        return _numbers(np.concatenate([[len(keys)], distances])) + self._codes(measured).tobytes()

    def hear(
        self, message: bytes, rounds: int, genuine: Callable[[int, int, bytes], bool] | None = None
    ) -> tuple[Keys, Keys]:
        """Add the entries of a message, up to the round `rounds`. Return the names of all, and of those that are new.

        `genuine` is called with the round, the peer and the bytes of each entry that is not known, and says whether the
        peer has signed it. Raises ValueError, and adds nothing, if `pack` never returns such bytes, or an entry is not
        genuine; TwoThings, if a genuine one is known with other codes.
        """
        (count,), at = _read(message, 0, 1)
        distances, at = _read(message, at, int(count))
        keys = np.cumsum(distances + 1) - 1
        limit = (rounds + 1) * self.peers
        if len(keys) and (int(distances.max()) >= limit or int(keys[-1]) >= limit):
            raise ValueError(f"an entry is of a round after {rounds}")
        width = self.codes.shape[2]
        measured = len(keys) if self.signed else int((keys >= self.peers).sum())
        if len(message) - at != measured * width:
            raise ValueError(f"{measured} entries of {width} bytes are followed by {len(message) - at} bytes of codes")
        codes = np.zeros((len(keys), width), dtype=np.uint8)
        codes[len(keys) - measured :] = np.frombuffer(message, dtype=np.uint8, offset=at).reshape(measured, width)
        self.reach(rounds)
        here = self.known.reshape(-1)[keys]
        other = here & (self._said(self._codes(keys)) != self._said(codes)).any(1)
        if genuine:
            for key, said in zip(keys[~here | other].tolist(), codes[~here | other], strict=True):
                round, peer = divmod(key, self.peers)
                if not genuine(round, peer, said.tobytes()):
                    raise ValueError(f"peer {peer} has not signed what it is said to have said in round {round}")
        if other.any():
            round, peer = divmod(int(keys[other][0]), self.peers)
            raise TwoThings(round, peer, self.codes[round, peer].tobytes(), codes[other][0].tobytes())
        return keys, self._include(keys[~here], codes[~here])

    def summary(self) -> bytes:
        """Return what the set has, for one who does not know it: for each round nothing, everything, or a bitmap."""
        parts = [_numbers(np.array([len(self.known)]))]
        for row in self.known:
            kind = 1 if row.all() else 2 if row.any() else 0
            parts.append(bytes([kind]) + (np.packbits(row).tobytes() if kind == 2 else b""))
        return b"".join(parts)

    def lacking(self, summary: bytes) -> Keys:
        """Return the names of the entries here that are not there. Raises ValueError if `summary` is invalid."""
        (rounds,), at = _read(summary, 0, 1)
        theirs, width = np.zeros_like(self.known), (self.peers + 7) // 8
        for round in range(int(rounds)):
            kind = summary[at] if at < len(summary) else 3
            bits = summary[at + 1 : at + 1 + width] if kind == 2 else b""
            if kind > 2 or len(bits) != (width if kind == 2 else 0):
                raise ValueError(f"the summary is cut short in round {round}")
            at += 1 + len(bits)
            if round < len(theirs):
                theirs[round] = np.unpackbits(np.frombuffer(bits, np.uint8), count=self.peers) if bits else kind
        if at != len(summary):
            raise ValueError(f"the summary goes on for {len(summary) - at} bytes")
        return np.flatnonzero(self.known & ~theirs)

    def _said(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return codes without signatures."""
        return codes[..., : codes.shape[-1] - self.signed]

    def _codes(self, keys: Keys) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self.codes.reshape(-1, self.codes.shape[2])[keys]
        return found

    def _include(self, keys: Keys, codes: NDArray[np.uint8]) -> Keys:
        """Add entries, and return the names of those that were not there."""
        if len(keys):
            self.reach(int(keys[-1]) // self.peers)
        new: Keys = keys[~self.known.reshape(-1)[keys]]
        self.codes.reshape(-1, self.codes.shape[2])[keys] = codes
        self.known.reshape(-1)[keys] = True
        return new


def _numbers(values: Keys) -> bytes:
    """Return numbers in the encoding of `ledger.commit.number`, all at once: a flood has millions of short messages."""
    if int(values.max(initial=0)) < 0x80:
        return values.astype(np.uint8).tobytes()
    rest, pieces, sizes = values, [values & 0x7F], np.ones(len(values), dtype=np.int64)
    while (rest := rest >> 7).any():
        pieces.append(rest & 0x7F)
        sizes += rest > 0
    table = np.stack(pieces, 1)
    place = np.arange(table.shape[1])
    table |= np.where(place < sizes[:, None] - 1, 0x80, 0)
    return table[place < sizes[:, None]].astype(np.uint8).tobytes()


def _read(data: bytes, at: int, count: int) -> tuple[Keys, int]:
    """Return `count` numbers from `at` on, and the position after them."""
    if count > len(data) - at:
        raise ValueError("the message is cut short")
    raw = np.frombuffer(data, dtype=np.uint8, offset=at)
    if int(raw[:count].max(initial=0)) < 0x80:
        return raw[:count].astype(np.int64), at + count
    ends = np.flatnonzero(raw < 0x80)[:count]
    if len(ends) < count:
        raise ValueError("the message is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if int((ends - starts).max()) > 7:
        raise ValueError("a number is longer than eight bytes")
    used = raw[: ends[-1] + 1].astype(np.int64)
    place = np.arange(len(used)) - np.repeat(starts, ends - starts + 1)
    return np.add.reduceat((used & 0x7F) << (7 * place), starts), at + int(ends[-1]) + 1
