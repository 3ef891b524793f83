"""All clients that may take part, and their examples."""

from fedshare.population.adversaries import Honest
from fedshare.population.counts import Computed, Counts
from fedshare.population.own import Declared, Owned
from fedshare.population.population import Answer, Population
from fedshare.population.shares import Part, Partitioned, Shares

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
