"""What a server tells its clients, and what it asks of them."""

from dataclasses import dataclass

from fedshare.machine.tally import EVERY
from fedshare.transport.stream.frames import MESSAGE_LIMIT


@dataclass(frozen=True)
class Settings:
    version: str  # of the program; a client of another is refused
    config: str = "{}"  # JSON, given to each client as it is
    config_sha256: str = ""  # what a client may insist on, in hex
    clients: int = 0  # how many there are: ids below this are let in; 0: any
    heartbeat: float = 10.0  # seconds between pings
    grace: float = 30.0  # seconds after which a client that is gone counts as absent
    limit: int = MESSAGE_LIMIT  # bytes of an answer, where nobody says what is expected of it
    awaited: int = 0  # how many are to come, where not all of `clients` are or these are not known
    callers: int = 64  # connections of one address that have not greeted, beside one for each client still to come
    reserve: int = 128  # file descriptors kept for files; the others are for connections
    quiet: float = EVERY  # seconds in which the log says the same of a caller once
    reminder: float = 86400.0  # seconds between two warnings of a certificate that ends soon
    name: str = ""  # of the run: a caller that asks for another is refused
