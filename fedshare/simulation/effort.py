"""How much work the rounds of a run are, counted from its sizes: nothing is timed, so every machine decides alike."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedshare.population.population import Population
from fedshare.tasks import models

STEPS, OPERATIONS = 20_000, 2e11  # what one core of a laptop does in ten seconds


@dataclass(frozen=True)
class Effort:
    """What all clients do in some rounds of plain training; a strategy may ask for more or for less."""

    steps: int
    operations: float  # multiply-adds: three for one of a forward pass

    @classmethod
    def of(cls, population: Population, clients_per_round: int | None, rounds: int) -> "Effort":
        training, sizes = population.training, [size for size in population.sizes() if size]
        taking_part = min(clients_per_round or len(sizes), len(sizes)) / max(1, len(sizes))
        steps = examples = 0.0
        for size in sizes:
            per_pass = training.pass_steps(size)
            count = training.round_steps(per_pass)
            steps += count
            examples += count * size / per_pass
        share = taking_part * rounds
        return cls(math.ceil(steps * share), 3 * examples * share * operations(population))

    @property
    def small(self) -> bool:
        """Whether one process is done with it in about the time in which others start."""
        return self.steps <= STEPS and self.operations <= OPERATIONS

    def __str__(self) -> str:
        return f"{self.steps:,} steps, {self.operations:.1g} multiply-adds"


def operations(population: Population) -> float:
    """Multiply-adds of a forward pass for one example: each weight counts for each place where it is applied."""
    found = 0.0

    def count(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal found
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and isinstance(output, Tensor):
            found += weight.numel() * output.numel() / max(1, weight.shape[0])

    module = population.scratch.module
    hooks = [part.register_forward_hook(count) for part in module.modules() if not list(part.children())]
    first = next(share for share in population.shares if share.size).train
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            models.call(module, first.batch(torch.tensor([0]))[0])
    except Exception:  # anybody's model, and perhaps one that takes no single example: it counts as large
        return math.inf
    finally:
        for hook in hooks:
            hook.remove()
    return max(found, float(population.scratch.size))
