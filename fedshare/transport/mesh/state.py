"""How the links of a peer are doing, as it tells whoever has a certificate of its authority."""

from dataclasses import dataclass

from fedshare._proto.mesh_pb2 import LinkStatus, MeshStatus
from fedshare.errors import NAME, brief


@dataclass(frozen=True)
class LinkState:
    peer: int
    connected: bool
    opened: int  # the round since which the link is open; 0: it is not
    entered: int  # the round that this neighbour has begun, as far as is known
    sent: int  # bytes, in frames
    received: int
    address: str
    said: str  # why it is not connected, if that is known


@dataclass(frozen=True)
class State:
    peer: int
    run: str  # the run's name, in hex
    version: str
    entered: int  # the round that it has begun
    round_seconds: float  # what the round before took
    links: tuple[LinkState, ...]

    def told(self) -> MeshStatus:
        links = [LinkStatus(**vars(link)) for link in self.links]
        fields = vars(self) | {"run": bytes.fromhex(self.run), "links": links}
        return MeshStatus(**fields)

    @classmethod
    def of(cls, told: MeshStatus) -> "State":
        """What another peer says, made fit to be shown."""
        links = tuple(
            LinkState(
                *(link.peer, link.connected, link.opened, link.entered, link.sent, link.received),
                *(brief(link.address, NAME), brief(link.said)),
            )
            for link in told.links
        )
        run, version = told.run.hex()[:64], brief(told.version, NAME)
        return cls(told.peer, run, version, told.entered, told.round_seconds, links)
