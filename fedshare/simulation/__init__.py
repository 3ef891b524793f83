"""Where simulated clients run."""

from fedshare.simulation.population import Population, Share, Shares
from fedshare.simulation.simulation import Simulation

__all__ = ["Population", "Share", "Shares", "Simulation"]
