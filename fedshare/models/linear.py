"""Logistic regression and the multilayer perceptron, on inputs of any shape."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.models import check


class Logistic(nn.Module):
    """Multinomial logistic regression: `shape` is one input's, flattened into features."""

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__()
        check.positive("Logistic", shape=shape, classes=classes)
        self.head = nn.Linear(prod(shape), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class MLP(nn.Module):
    """Fully connected layers with ReLU; the default is the 2NN of McMahan et al. 2017 (199,210 parameters on MNIST)."""

    def __init__(self, shape: Sequence[int], classes: int, hidden: Sequence[int] = (200, 200)) -> None:
        super().__init__()
        check.positive("MLP", shape=shape, classes=classes, hidden=hidden)
        sizes = [prod(shape), *hidden]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)
