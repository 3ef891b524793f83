"""Who may come to a peer: by its greeting, its certificate, the run's graph and the operator's lists."""

from collections.abc import Collection

from fedshare._proto.mesh_pb2 import MeshFrame, MeshHello
from fedshare.errors import NAME, brief
from fedshare.identity.admission import Admission
from fedshare.transport.mesh.settings import BEYOND, PROTOCOL, Settings
from fedshare.transport.mesh.talk import latest_in


class Entry:
    """The rules of the peer `me`, with these neighbours."""

    def __init__(self, settings: Settings, me: int, neighbours: Collection[int], admission: Admission) -> None:
        self.admission = admission
        self._settings, self._me, self._neighbours = settings, me, neighbours

    def objection(self, hello: MeshHello, certified: int | None, pem: bytes | None) -> str | None:
        """Why whoever greets so may not come; None where it may.

        `certified`: the peer that its certificate names; `pem`: that certificate, if it is known.
        """
        peer, ours = hello.peer, self._settings
        if certified is not None and certified != peer:
            return f"its certificate is peer {certified}'s, but it says that it is peer {peer}"
        if hello.protocol != PROTOCOL or hello.version != ours.version:
            theirs = f"fedshare {brief(hello.version, NAME)} (mesh {hello.protocol})"
            return f"it runs {theirs}, peer {self._me} fedshare {ours.version} (mesh {PROTOCOL})"
        if hello.run != ours.run:
            return f"its run is {brief(hello.run.hex()[:12])}, that of peer {self._me} {ours.run.hex()[:12]}"
        if peer >= ours.peers:
            return f"there are {ours.peers} peers, 0 to {ours.peers - 1}"
        if (named := latest_in(MeshFrame(hello=hello))) > ours.rounds + BEYOND:
            return f"it names round {named}, and the run has {ours.rounds}"
        self.admission.refresh()
        if reason := self.admission.objection(peer, pem):
            return reason
        if peer not in self._neighbours:
            return f"peer {peer} is no neighbour of peer {self._me} in the run's graph"
        return None
