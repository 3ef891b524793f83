"""What a relay says of itself: for whom it waits, who is there, and which snapshots it holds."""

from collections.abc import Mapping
from typing import Any

from fedshare.relay.sequencer import Sequencer
from fedshare.relay.store import Store
from fedshare.transport.relay.session import Session


def described(
    sequencer: Sequencer, sessions: Mapping[int, Session], rounds: int, times: Mapping[str, float]
) -> dict[str, Any]:
    """Return who takes part, who is connected, and how far behind; `rounds` is the number of commits."""
    return {
        "waits": sequencer.waits_for(),
        **{name: round(value, 6) for name, value in times.items()},
        "peers": {
            str(peer): {
                "connected": peer in sessions,
                "takes_part": one.here,
                "missed": one.missed,
                "left": one.left,
                "removed": one.removed,
                "lag": rounds - sessions[peer].rounds if peer in sessions else None,
                "bytes": sessions[peer].bytes if peer in sessions else 0,
            }
            for peer, one in sorted(dict(sequencer.members.all).items())
        },
    }


def offered(store: Store) -> list[dict[str, Any]]:
    """Return the snapshots, and the bytes of the commits that one who begins at them need not read."""
    whole = store.size(0)
    return [
        {"round": round, "digest": digest.hex(), "size": size, "saves": whole - store.size(round + 1)}
        for round, digest, size in store.snapshots()
    ]
