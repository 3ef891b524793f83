"""The round loops of a server and of a peer, and the records of a round."""

from fedshare.rounds.peer import run_peer
from fedshare.rounds.round import Round
from fedshare.rounds.schedule import Schedule, sample
from fedshare.rounds.server import run_server

__all__ = ["Round", "Schedule", "run_peer", "run_server", "sample"]
