"""The amount of work in a run's rounds, computed from sizes: nothing is timed, so every machine decides the same."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedshare.data.dataset import mapped
from fedshare.population.population import Population
from fedshare.tasks import models

STEPS, OPERATIONS = 20_000, 2e11  # one core of a laptop's work in ten seconds


@dataclass(frozen=True)
class Effort:
    """All clients' work in some rounds of plain training; a strategy may need more or less."""

    steps: int
    operations: float  # multiply-adds: three times those of a forward pass

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
        """Whether one process finishes in about the time that starting others takes."""
        return self.steps <= STEPS and self.operations <= OPERATIONS

    def __str__(self) -> str:
        return f"{self.steps:,} steps, {self.operations:.1g} multiply-adds"


def operations(population: Population) -> float:
    """Return the multiply-adds of one example's forward pass: each weight counts for each place where it is applied."""
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
            inputs, _ = first.batch(torch.tensor([0]))
            models.call(module, mapped(lambda part: part.to(population.scratch.device), inputs))
    except Exception:  # any user's model, which may reject a single example: it counts as large
        return math.inf
    finally:
        for hook in hooks:
            hook.remove()
    return max(found, float(population.scratch.size))
