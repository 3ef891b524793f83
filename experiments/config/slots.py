"""The keys of a config that name an object to be made, and the required type."""

import torch

from fedshare.attacks import Attack
from fedshare.client import Training
from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition
from fedshare.experiments.tracking import Tracker
from fedshare.links import Links
from fedshare.peers import Peering
from fedshare.peft import Method
from fedshare.simulation.cluster import Cluster
from fedshare.strategy import Strategy
from fedshare.tasks import Task
from fedshare.training.rates import Rate

PARTS: dict[str, type] = {  # parts that are cheap to make
    "strategy": Strategy,
    "peft": Method,
    "client": Training,
    "schedule": Rate,
    "task": Task,
    "attack": Attack,
    "peers": Peering,
    "links": Links,
    "tracking": Tracker,
    "cluster": Cluster,
}
SLOTS = PARTS | {"partition": Partition, "model": torch.nn.Module, "data.load": Dataset}
