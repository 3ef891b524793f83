"""Any strategy without a server: every peer keeps what a server would, and aggregates what its neighbours send it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from fedshare.network import Peers
from fedshare.payload import Payload
from fedshare.peers.around import Around, Centred, Mixing, aggregated, consensus
from fedshare.peers.averaging import Averaging, Neighbours
from fedshare.peers.mesh import Mesh, Voice
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy, weakness
from fedshare.tensors import Tensors, flatten, mean


@dataclass(frozen=True)
class Decentralised(Around):
    """A strategy whose `aggregate` runs at every peer, on the uploads of the peer's neighbours and its own.

    The memory has each peer's own in ``peers``. A peer that did not take part in a round keeps its memory, and the
    weights are those of the peers that did (`fedshare.peers.mixing`), so that doubly stochastic weights stay so.
    """

    # Of the number of peers, seed, round and who is here; None: everyone.
    mixes: Callable[[int, int, int, Collection[int] | None], Mixing]
    links: Callable[[int, int, int], list[list[int]]]  # of the number of peers, seed and round
    count: int  # peers
    seed: int
    conserves: bool = False  # whether nobody may be missing without the others' knowledge (``peers.mixing=push``)

    reports: ClassVar[dict[str, str]] = {
        "consensus": "root mean square distance of the peers' models from their average"
    }

    def init(self, params: Tensors, clients: int) -> State:
        first = self.inner.init(params, clients)
        return {"peers": dict.fromkeys(range(self.count), first)}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return self.inner.download(state["peers"][client_id], client_id, purpose)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        mixing, peers = self.mixes(self.count, self.seed, round, uploads.keys()), dict(state["peers"])
        centred = isinstance(self.inner, Centred)
        alike: dict[tuple[object, ...], State] = {}  # on a full graph, all peers compute the same
        for peer in uploads:
            weights = mixing[peer]
            key = (peer,) if centred else (id(peers[peer]), *sorted(weights.items()))
            if key not in alike:
                alike[key] = aggregated(self.inner, peer, peers[peer], round, weights, uploads)
            peers[peer] = alike[key]
        return {"peers": peers}

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return self.inner.expects(state["peers"][client_id], client_id)

    def averaged(self, downloads: dict[int, Payload]) -> dict[int, Payload]:
        models = [download.tensors.get("params", {}) for _, download in sorted(downloads.items())]
        if not models or not all(models):
            return {}
        shared = mean(models)
        return {peer: replace(one, tensors=one.tensors | {"params": shared}) for peer, one in downloads.items()}

    def weakness(self, clients: Collection[int]) -> str | None:
        """Of the peer with the fewest neighbours among `clients`, in the first round's graph."""
        mixing = self.mixes(self.count, self.seed, 1, clients)
        fewest = min((mixing[peer].keys() for peer in clients), key=len, default=())
        return weakness(self.inner, sorted(fewest))

    def check_apart(self) -> None:
        """Everything can run in processes."""

    def at(self, me: int, mesh: Mesh, voice: Voice) -> tuple[Strategy, Peers]:
        mixes = lambda round, here: self.mixes(self.count, self.seed, round, here)  # noqa: E731
        links = partial(self.links, self.count, self.seed)
        return Averaging(self.inner, mixes, self.count, me), Neighbours(mesh, voice, me, links, self.conserves)

    def report(self, state: State) -> dict[str, Any]:
        models = [flatten(own["params"]).double() for own in state["peers"].values() if "params" in own]
        if not models:
            return {}
        return {"consensus": consensus(torch.stack(models))}
