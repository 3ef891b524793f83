"""Simulated clients, in this process or in workers."""

from fedshare.population import Part, Partitioned, Population, Shares
from fedshare.population.own import Declared, Owned
from fedshare.simulation.simulation import Simulation

__all__ = ["Declared", "Owned", "Part", "Partitioned", "Population", "Shares", "Simulation"]
