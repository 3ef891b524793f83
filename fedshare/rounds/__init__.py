"""The two loops, a server's and a peer's, and what a round leaves."""

from fedshare.rounds.loops import Round, run_peer, run_server
from fedshare.rounds.schedule import Schedule, sample

__all__ = ["Round", "Schedule", "run_peer", "run_server", "sample"]
