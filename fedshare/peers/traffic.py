"""The account of a run among peers: what they send to each other, and no server."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedshare.payload import Payload
from fedshare.peers.decentralised import Mixing
from fedshare.rounds.account import Account
from fedshare.state import State


@dataclass(frozen=True, kw_only=True)
class Traffic(Account):
    """Each upload goes to all who receive it, itself not counted; a peer's own memory is sent to nobody."""

    mixes: Callable[[int], Mixing]  # of the round

    def round(
        self,
        number: int,
        uploads: Mapping[int, Payload],
        dropped: Mapping[int, Payload],
        downloads: Mapping[int, Payload],
        state: State,
    ) -> dict[str, int | dict[str, int]]:
        receivers = dict.fromkeys(uploads.keys() | dropped.keys(), 0)
        for peer, weights in enumerate(self.mixes(number)):
            for sender in weights.keys() & receivers.keys() - {peer}:
                receivers[sender] += 1
        good, bad = (
            [payload for sender, payload in some.items() for _ in range(receivers[sender])]
            for some in (uploads, dropped)
        )
        return self.row(good, bad, good)


@dataclass(frozen=True, kw_only=True)
class Flooded(Traffic):
    """Entries of a ledger, summaries and acknowledgements go over each link, as often as they are sent."""

    def round(
        self,
        number: int,
        uploads: Mapping[int, Payload],
        dropped: Mapping[int, Payload],
        downloads: Mapping[int, Payload],
        state: State,
    ) -> dict[str, int | dict[str, int]]:
        sent = int(state["flood"]["sent"].sum())
        row = super().round(number, uploads, dropped, downloads, state)
        return (
            row
            | {f"bytes_{way}": sent for way in ("up", "down")}
            | {f"bytes_{way}_by_group": {"entries": sent} for way in ("up", "down")}
        )
