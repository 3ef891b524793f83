"""An adversary: a participant that lies about its examples or about its update."""

from dataclasses import dataclass

import torch

from fedshare import seeds
from fedshare.client import Client
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.seeds import Key
from fedshare.state import State
from fedshare.tensors import Tensors


@dataclass(frozen=True)
class Sight:
    """What is visible to an adversary that forges its own update."""

    round: int
    seed: int
    client: int
    memory: State  # its memory between rounds, to be changed in place
    start: Tensors  # the model's shared part before training, as downloaded

    def generator(self, *key: Key) -> torch.Generator:
        return seeds.generator(self.seed, "attack", *key, self.round, self.client)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The base of all attacks: it chooses the adversaries, and a subclass overrides their behaviour; here it is honest.

    Updates are flat: named as in `fedshare.attacks.update`, floating point, everything that the client uploads of a
    model or a change. Other parts of an upload (a mask, a number of examples) stay as honest training made them.
    """

    adversaries: int | list[int] = 0  # their ids, or their number, drawn by the seed

    def __post_init__(self) -> None:
        listed = self.adversaries if isinstance(self.adversaries, list) else [self.adversaries]
        if any(number < 0 for number in listed):
            raise UserError(f"adversaries={self.adversaries}: must be at least 0")

    @property
    def lies(self) -> bool:
        """Whether the attack ever differs from honest behaviour; with this base class there are no adversaries."""
        return type(self) is not Attack

    @property
    def trains(self) -> bool:
        """Whether adversaries train on their examples; free-riders do not."""
        return True

    def who(self, clients: int, seed: int) -> list[int]:
        """Return the sorted ids of the adversaries among `clients` clients."""
        if isinstance(self.adversaries, list):
            if unknown := [id for id in self.adversaries if id >= clients]:
                raise UserError(f"attack.adversaries: there are {clients} clients, so there is no client {unknown[0]}")
            return sorted(set(self.adversaries))
        if self.adversaries > clients:
            raise UserError(f"attack.adversaries={self.adversaries}: there are {clients} clients")
        order = torch.randperm(clients, generator=seeds.generator(seed, "adversaries"))
        return sorted(order[: self.adversaries].tolist())

    def suits(self, example: Examples, classes: int) -> None:
        """Raise UserError if this attack cannot poison examples of this kind with so many classes."""

    def at(self, round: int) -> "Attack":
        """Return the attack that the adversaries use in this round."""
        return self

    def poison(self, examples: Examples, generator: torch.Generator) -> Examples:
        """Return the examples that an adversary trains on, made from its own."""
        return examples

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        """Return the update that an adversary claims, made from its trained one."""
        return update

    def collude(
        self, honest: dict[int, Tensors], own: dict[int, Tensors], generator: torch.Generator
    ) -> dict[int, Tensors]:
        """Return the updates that the adversaries claim, given their `own` updates and those of the `honest` clients.

        Both are nonempty, and in client order. `generator` is the round's.
        """
        return own

    def success(self, client: Client) -> dict[str, float]:
        """Return how far the attack reaches its aim at this client's model, if any: ``attack_success``, 0 to 1."""
        return {}
