"""One peer of a flood: its entries, and what it has yet to send to its neighbours."""

from collections.abc import Collection

import numpy as np

from fedshare.ledger.entries import Entries, Keys


class Station:
    """A peer sends a neighbour what the neighbour is not known to have.

    Two peers that meet for the first time compare summaries of their sets; after that they only send news, and again
    what was lost.
    """

    def __init__(self, entries: Entries, waiting: dict[int, Keys]) -> None:
        """`waiting`: by the receivers that it has met, the names of the entries that wait to be sent."""
        self.entries = entries
        self._waiting = {receiver: [keys] for receiver, keys in waiting.items()}
        self._receivers: list[int] = sorted(waiting)

    def keep(self, receivers: Collection[int]) -> None:
        """Forget what waits for peers that are not among the round's `receivers`."""
        self._waiting = {receiver: keys for receiver, keys in self._waiting.items() if receiver in receivers}
        self._receivers = sorted(receivers)

    def forget(self, receiver: int) -> None:
        """Compare summaries again with a peer."""
        self._waiting.pop(receiver, None)

    def has_met(self, receiver: int) -> bool:
        return receiver in self._waiting

    def learnt(self, new: Keys, source: int | None = None) -> None:
        """Let entries that are new here wait for all receivers but the one that has sent them."""
        if len(new):
            for receiver in self._receivers:
                if receiver != source and receiver in self._waiting:
                    self._waiting[receiver].append(new)

    def due(self, receiver: int, summary: bytes | None = None) -> Keys:
        """Return the names of what is to be sent to `receiver`, and count it as sent.

        `summary` is the receiver's, required if they have not met. Raises ValueError if it is invalid.
        """
        keys = _sorted(self._waiting[receiver]) if summary is None else self.entries.lacking(summary)
        self._waiting[receiver] = []
        return keys

    def again(self, receiver: int, keys: Keys) -> None:
        """Send these once more."""
        self._waiting[receiver].append(keys)

    def heard(self, sender: int, received: Keys) -> None:
        """Do not send back to the sender what it has."""
        waiting = self._waiting.get(sender)
        if waiting and sum(map(len, waiting)):
            keys, there = np.concatenate(waiting), np.zeros(self.entries.known.size, dtype=np.bool_)
            there[received] = True
            self._waiting[sender] = [keys[~there[keys]]]

    def unsent(self) -> dict[int, Keys]:
        """Return what waits, by receiver; empty arrays for those who have met and are even."""
        return {receiver: _sorted(keys) for receiver, keys in self._waiting.items()}


def _sorted(keys: list[Keys]) -> Keys:
    if len(keys) == 1:
        return keys[0] if len(keys[0]) < 2 else np.unique(keys[0])
    return np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.int64)
