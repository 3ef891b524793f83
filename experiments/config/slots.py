"""What a config names to be made, and the type that it must be of."""

import torch

from fedshare.attacks import Attack
from fedshare.client import Training
from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition
from fedshare.experiments.tracking import Tracker
from fedshare.peft import Method
from fedshare.strategy import Strategy
from fedshare.tasks import Task
from fedshare.training.rates import Rate

PARTS: dict[str, type] = {  # what costs little to make
    "strategy": Strategy,
    "peft": Method,
    "client": Training,
    "schedule": Rate,
    "task": Task,
    "attack": Attack,
    "tracking": Tracker,
}
SLOTS = PARTS | {"partition": Partition, "model": torch.nn.Module, "data.load": Dataset}
