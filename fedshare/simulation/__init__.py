"""Where simulated clients run."""

from fedshare.simulation.own import Declared, Owned
from fedshare.simulation.population import Part, Partitioned, Population, Shares
from fedshare.simulation.simulation import Simulation

__all__ = ["Declared", "Owned", "Part", "Partitioned", "Population", "Shares", "Simulation"]
