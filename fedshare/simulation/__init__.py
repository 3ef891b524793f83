"""Where simulated clients run."""

from fedshare.simulation.population import Part, Partitioned, Population
from fedshare.simulation.simulation import Simulation

__all__ = ["Part", "Partitioned", "Population", "Simulation"]
