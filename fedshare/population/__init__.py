"""Everyone who may take part, and the examples of each."""

from fedshare.population.counts import Computed, Counts
from fedshare.population.own import Declared, Owned
from fedshare.population.population import Answer, Honest, Part, Partitioned, Population, Shares

__all__ = [
    "Answer",
    "Computed",
    "Counts",
    "Declared",
    "Honest",
    "Owned",
    "Part",
    "Partitioned",
    "Population",
    "Shares",
]
