"""The engine of a run, chosen from sizes: nothing is timed, so every machine decides the same."""

from collections.abc import Mapping
from types import MappingProxyType

from fedshare.engine.batched import Batched, group_size
from fedshare.engine.fitting import objection
from fedshare.engine.single import Make, Single
from fedshare.population import Population
from fedshare.simulation.effort import Effort

ENGINES: Mapping[str, Make] = MappingProxyType({"plain": Single, "batched": Batched})
AUTO = "auto"
MANY = 50_000  # steps from which batching regains the seconds that it takes to begin
LIGHT = 3e7  # multiply-adds in a step: above, one client's step fills a core
TOGETHER = 8  # clients below which batching gains little


def chosen(population: Population, effort: Effort, clients_per_round: int | None) -> tuple[str, str]:
    """Return the engine that ``auto`` stands for, and why."""
    clients = min(clients_per_round or population.clients, population.clients)
    size = group_size(population.scratch)
    each, device = effort.operations / max(1, effort.steps), population.scratch.device
    if reason := objection(population.scratch, population.training):
        return "plain", reason
    if device.type != "cpu":
        return "plain", f"device={device}: when batching pays is known for CPUs only"
    if effort.steps <= MANY:
        return "plain", f"{effort.steps:,} steps, and batching pays above {MANY:,}"
    if each > LIGHT:
        return "plain", f"{each:.1g} multiply-adds a step, and batching pays up to {LIGHT:.1g}"
    if min(clients, size) < TOGETHER:
        return "plain", f"{min(clients, size)} clients at once, and batching pays from {TOGETHER}"
    return "batched", f"{effort}; {min(clients, size)} clients at once"
