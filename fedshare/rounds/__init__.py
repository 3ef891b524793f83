"""The round loops of a server and of a peer, and the records of a round."""

from fedshare.rounds.round import Round
from fedshare.rounds.schedule import Schedule, sample
from fedshare.rounds.server import run_server

__all__ = ["Round", "Schedule", "run_server", "sample"]
