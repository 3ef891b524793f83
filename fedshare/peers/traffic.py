"""The account of a run among peers: what they send to each other, and no server."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedshare.payload import Payload
from fedshare.peers.flood import Links
from fedshare.rounds.account import Account
from fedshare.state import State


@dataclass(frozen=True, kw_only=True)
class Traffic(Account):
    """Each upload goes to all who receive it; ``bytes_by_peer`` is what each sends, the same on each of its links."""

    links: Callable[[int], Links]  # of the round

    def round(
        self,
        number: int,
        uploads: Mapping[int, Payload],
        dropped: Mapping[int, Payload],
        downloads: Mapping[int, Payload],
        state: State,
    ) -> dict[str, int | dict[str, int]]:
        receivers = Counter(sender for senders in self.links(number) for sender in senders)
        good, bad = (
            [payload for sender, payload in some.items() for _ in range(receivers[sender])]
            for some in (uploads, dropped)
        )
        sent = {str(peer): receivers[peer] * one.nbytes for peer, one in sorted({**uploads, **dropped}.items())}
        return self.row(good, bad, good) | {"bytes_by_peer": sent}


@dataclass(frozen=True, kw_only=True)
class Flooded(Traffic):
    """Entries of a ledger, summaries and acknowledgements go over each link, as often as they are sent.

    `counted` returns, of a memory, the bytes sent and received in its round, and those sent by each peer.
    """

    counted: Callable[[State], tuple[int, int, list[int]]]

    def round(
        self,
        number: int,
        uploads: Mapping[int, Payload],
        dropped: Mapping[int, Payload],
        downloads: Mapping[int, Payload],
        state: State,
    ) -> dict[str, int | dict[str, int]]:
        row = super().round(number, uploads, dropped, downloads, state)
        *both, each = self.counted(state)
        for way, size in zip(("up", "down"), both, strict=True):
            row |= {f"bytes_{way}": size, f"bytes_{way}_by_group": {"entries": size}}
        return row | {"bytes_by_peer": {str(peer): size for peer, size in enumerate(each)}}


@dataclass(frozen=True, kw_only=True)
class OfOne(Traffic):
    """What the peer `me` sends to its receivers, and what its senders have sent it."""

    me: int

    def round(
        self,
        number: int,
        uploads: Mapping[int, Payload],
        dropped: Mapping[int, Payload],
        downloads: Mapping[int, Payload],
        state: State,
    ) -> dict[str, int | dict[str, int]]:
        receivers = sum(self.me in senders for senders in self.links(number))
        good, bad = ([some[self.me]] * receivers if self.me in some else [] for some in (uploads, dropped))
        came = {**uploads, **dropped}
        return self.row(good, bad, [payload for sender, payload in came.items() if sender != self.me])
