"""An engine trains and tests a client's model; the plain one at once, which is the reference for all others."""

from contextlib import AbstractContextManager
from typing import Protocol

from fedshare import seeds
from fedshare.data.dataset import Examples
from fedshare.tensors import Tensors
from fedshare.training.fit import Fit, Steps, train
from fedshare.training.measure import Measure
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training


class Engine(Protocol):
    def scope(self, *key: seeds.Key) -> AbstractContextManager[None]:
        """Return a context in which torch's own generator has the stream named `key` whenever the model's code runs."""
        ...

    def train(self, scratch: Scratch, training: Training, fit: Fit, steps: Steps) -> float:
        """Train the model in `scratch` and return the mean of all losses, each taken before its step."""
        ...

    def sums(self, measure: Measure, examples: Examples) -> Tensors:
        """Return the sums of a test of the model on `examples`."""
        ...


class Plain:
    def scope(self, *key: seeds.Key) -> AbstractContextManager[None]:
        return seeds.scope(*key)

    def train(self, scratch: Scratch, training: Training, fit: Fit, steps: Steps) -> float:
        return train(scratch, training, fit, steps)

    def sums(self, measure: Measure, examples: Examples) -> Tensors:
        return measure.sums(examples)
