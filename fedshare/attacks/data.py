"""Poisoned examples, on which adversaries train honestly."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedshare.attacks.attack import Attack, Sight
from fedshare.attacks.limits import limit
from fedshare.client import Client
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.tensors import Tensors, scale


@dataclass(frozen=True, kw_only=True)
class LabelFlip(Attack):
    """Wrong labels: each class c becomes ``classes - 1 - c``, or only `source` becomes `target`.

    It succeeds on a test example if the model predicts the flipped label. With an odd number of classes, the middle
    one is unchanged and not counted.
    """

    classes: int  # number of classes
    source: int | None = None  # the only class whose examples are mislabelled; null: all classes
    target: int | None = None  # their false label; null: the opposite class

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source is None) != (self.target is None) or (self.source is not None and self.source == self.target):
            raise UserError(f"source={self.source}, target={self.target}: must be two classes, or null both")
        if self.source is not None:
            limit(self, 0, self.classes - 1, "source", "target")

    def suits(self, example: Examples, classes: int) -> None:
        labelled(example)
        if classes != self.classes:
            raise UserError(f"attack: its classes are {self.classes}, those of the data {classes}")

    def flipped(self, y: Tensor) -> Tensor:
        if self.source is None or self.target is None:
            return self.classes - 1 - y
        return torch.where(y == self.source, self.target, y)

    def poison(self, examples: Examples, generator: torch.Generator) -> Examples:
        return replace(examples, y=self.flipped(examples.y))

    def success(self, client: Client) -> dict[str, float]:
        examples = client.test_examples
        return reached(client, examples, self.flipped(examples.y))


@dataclass(frozen=True, kw_only=True)
class Backdoor(Attack):
    """A trigger in the input, a patch in the lower right corner of an image, that makes models predict `target`.

    For features and tokens, the trigger is the first `size`. It succeeds on a test example of another class if the
    model predicts `target` once the trigger is inserted.
    """

    target: int = 0  # the class that the trigger should cause
    fraction: float = 0.5  # share of an adversary's examples that get the trigger and the target
    size: int = 2  # pixels along an edge of the patch; or number of features or tokens
    value: float = 255  # of a pixel in the patch or a feature; or the token's number
    boost: float = 1.0  # factor on its update; clients of a round / liars among them replaces the model

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "target")
        limit(self, 0, 1, "fraction")
        limit(self, 1, math.inf, "size")
        limit(self, -math.inf, math.inf, "value", "boost")

    def suits(self, example: Examples, classes: int) -> None:
        labelled(example)
        if self.target >= classes:
            raise UserError(f"attack: its target is {self.target}, but the data's classes are 0 to {classes - 1}")
        shape, kind = list(example.single.shape[1:]), example.single.dtype
        if len(shape) not in (1, 3) or self.size > min(shape[-2:]):
            raise UserError(f"attack: a trigger of size {self.size} does not fit into inputs of shape {shape}")
        if not kind.is_floating_point and torch.tensor(self.value).to(kind).item() != self.value:
            raise UserError(f"attack: its value {self.value} is no {str(kind).removeprefix('torch.')}, as inputs are")

    def triggered(self, x: Tensor) -> Tensor:
        x = x.clone()
        if x.ndim == 4:
            x[..., -self.size :, -self.size :] = self.value
        else:
            x[:, : self.size] = self.value
        return x

    def poison(self, examples: Examples, generator: torch.Generator) -> Examples:
        count = math.ceil(self.fraction * len(examples))
        rows = torch.randperm(len(examples), generator=generator)[:count]
        x, y = examples.single.clone(), examples.y.clone()
        x[rows], y[rows] = self.triggered(x[rows]), self.target
        return replace(examples, x=x, y=y)

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        return scale(update, self.boost)

    def success(self, client: Client) -> dict[str, float]:
        examples = client.test_examples
        triggered = replace(examples, x=self.triggered(examples.single))
        return reached(client, triggered, torch.full_like(examples.y, self.target))


def labelled(example: Examples) -> None:
    """Raise UserError if examples do not have one label each, or are not in memory."""
    if not example.in_memory:
        raise UserError(
            "attack: changes examples, and these are read lazily; data.load.cache=true keeps them in memory"
        )
    if example.labels is None:
        raise UserError("attack: needs examples that have one label each")


def reached(client: Client, examples: Examples, aims: Tensor) -> dict[str, float]:
    """Return the share of examples that the client's model predicts as in `aims`.

    Examples for which this is the true label are left out; if none remain, the result is empty.
    """
    rows = (aims != examples.y).nonzero().flatten()
    if not len(rows):
        return {}
    hits = 0
    client.model.eval()
    with torch.no_grad():
        for some in rows.split(client.training.evaluation_batch_size):
            inputs, _ = examples.batch(some)
            hits += int((client.outputs(inputs).argmax(-1) == aims[some]).sum())
    return {"attack_success": hits / len(rows)}
