"""Methods that add nothing: they train a subset of the model's parameters."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedshare.peft.method import Method


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """All parameters: full fine-tuning, or training from scratch. With `local`, partial sharing of any kind."""

    group: ClassVar[str] = "body"

    def check(self, modules: set[str]) -> None:
        """Accept any model: here the head is only a name in the byte counts."""

    def trains(self, name: str) -> bool:
        return True

    def awake(self, model: nn.Module, backbone: set[int]) -> frozenset[str] | None:
        return None


@dataclass(frozen=True, kw_only=True)
class Head(Method):
    """The last layer alone: linear probing."""

    group: ClassVar[str] = "head"

    def trains(self, name: str) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Bias(Method):
    """All biases: BitFit (Ben Zaken et al. 2022, arXiv 2106.10199)."""

    group: ClassVar[str] = "bias"

    def trains(self, name: str) -> bool:
        return "bias" in name.rpartition(".")[2]
