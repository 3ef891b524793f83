"""Rules by which a server aggregates updates, some of which may be adversarial."""

from fedshare.rules.byzfl import ByzFL
from fedshare.rules.centre import CentredClipping, GeometricMedian
from fedshare.rules.coordinates import Median, TrimmedMean
from fedshare.rules.krum import Bulyan, Krum, MultiKrum
from fedshare.rules.neighbours import NearestNeighbourMixing
from fedshare.rules.rule import Rule

__all__ = [
    "Bulyan",
    "ByzFL",
    "CentredClipping",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "NearestNeighbourMixing",
    "Rule",
    "TrimmedMean",
]
