"""Partitions: how a data set is divided among clients."""

from fedshare.data.partition.base import Partition, Split, counted_from_one, left_out, table
from fedshare.data.partition.deal import match
from fedshare.data.partition.feature import FeatureSkew
from fedshare.data.partition.fling import Fling
from fedshare.data.partition.flwr import Flwr
from fedshare.data.partition.label import Dirichlet, DirichletClient, Imbalance, Pathological, Shards
from fedshare.data.partition.own import Own
from fedshare.data.partition.pfllib import PfllibDir, PfllibExdir, PfllibPat
from fedshare.data.partition.rffl import RfflClassImbalance, RfflPowerlaw, RfflUniform
from fedshare.data.partition.simple import Iid, Natural, Quantity

__all__ = [
    "Dirichlet",
    "DirichletClient",
    "FeatureSkew",
    "Fling",
    "Flwr",
    "Iid",
    "Imbalance",
    "Natural",
    "Own",
    "Partition",
    "Pathological",
    "PfllibDir",
    "PfllibExdir",
    "PfllibPat",
    "Quantity",
    "RfflClassImbalance",
    "RfflPowerlaw",
    "RfflUniform",
    "Shards",
    "Split",
    "counted_from_one",
    "left_out",
    "match",
    "table",
]
