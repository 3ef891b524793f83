"""What the links of one peer are for, and how long they wait."""

from dataclasses import dataclass

from fedshare.machine.tally import EVERY
from fedshare.transport.stream.frames import MESSAGE_LIMIT

PROTOCOL = 1  # of the links; two neighbours must have the same
LINK, MEET, STATUS = (f"/fedshare.v1.Mesh/{method}" for method in ("Link", "Meet", "Status"))
SERVICE = "fedshare.v1.Mesh"
BEYOND = 1000  # rounds after the last one that neighbours may come to name while they agree
AHEAD = 8  # whole messages of a neighbour that are kept before this peer takes them


@dataclass(frozen=True)
class Settings:
    """Times are in seconds."""

    run: bytes  # the run's name, 32 bytes
    version: str  # of the program
    peers: int  # how many the run has: numbers below this are let in
    rounds: int = 1 << 40  # the last round; a neighbour that names one much later breaks the protocol
    wait: float = 600.0  # for neighbours, at the start
    grace: float = 30.0  # in which a neighbour that has lost its connection may come back
    timeout: float = 600.0  # for a message of a neighbour that is connected, and waits for nobody itself
    heartbeat: float = 10.0  # between pings; one that is unanswered for as long ends the connection
    limit: int = MESSAGE_LIMIT  # bytes of a message
    callers: int = 64  # connections of one address that have not greeted
    reserve: int = 128  # file descriptors kept for files
    quiet: float = EVERY  # in which the log says the same of a neighbour once
