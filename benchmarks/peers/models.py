"""The workloads' models in torch, for peers without fedshare: the same layers, in the same order, as fedshare's."""

from collections import OrderedDict
from itertools import pairwise

from arrays import CLASSES, WORKLOADS
from torch import nn


def make(name: str) -> nn.Module:
    model = MAKERS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == WORKLOADS[name].parameters
    return model


def perceptron(*sizes: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for place, (before, after) in enumerate(pairwise(sizes)):
        layers[f"layer{place}"] = nn.Linear(before, after)
        layers[f"relu{place}"] = nn.ReLU()
    layers["head"] = nn.Linear(sizes[-1], CLASSES)
    return nn.Sequential(layers)


def cnn(channels: int, side: int) -> nn.Sequential:
    left = ((side - 4) // 2 - 4) // 2  # of height and width, after both layers
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * left * left, 512), nn.ReLU(), nn.Linear(512, CLASSES)),
    )


MAKERS = {
    "W1": lambda: cnn(3, 32),
    "W2m": lambda: perceptron(784, 200, 200),
    "W2c": lambda: cnn(1, 28),
    "W3": lambda: perceptron(60),
    "W3b": lambda: perceptron(784, 32),
}
