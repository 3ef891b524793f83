"""An adversary: a participant that lies about its examples or about what it has learnt from them."""

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
    """What an adversary that lies about its own update sees."""

    round: int
    seed: int
    client: int
    memory: State  # what it remembers between rounds, to be changed in place
    start: Tensors  # the model's shared part before training, as it was downloaded

    def generator(self, *key: Key) -> torch.Generator:
        return seeds.generator(self.seed, "attack", *key, self.round, self.client)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Who lies. A subclass overrides what the lie is about; this one's adversaries are honest.

    Updates are flat: named as `fedshare.attacks.update` has it, floating point, all that the client uploads of a model
    or of a change. What is no such thing (a mask, a number of examples) stays what honest training gave.
    """

    adversaries: int | list[int] = 0  # who: their ids, or how many, drawn by the seed

    def __post_init__(self) -> None:
        listed = self.adversaries if isinstance(self.adversaries, list) else [self.adversaries]
        if any(number < 0 for number in listed):
            raise UserError(f"adversaries={self.adversaries}: must be at least 0")

    @property
    def lies(self) -> bool:
        """Whether anybody ever does what an honest client does not: with this class itself nobody is an adversary."""
        return type(self) is not Attack

    @property
    def trains(self) -> bool:
        """Whether they learn anything from their examples: free-riders do not."""
        return True

    def who(self, clients: int, seed: int) -> list[int]:
        """The adversaries' ids among so many clients, sorted."""
        if isinstance(self.adversaries, list):
            if unknown := [id for id in self.adversaries if id >= clients]:
                raise UserError(f"attack.adversaries: there are {clients} clients, so there is no client {unknown[0]}")
            return sorted(set(self.adversaries))
        if self.adversaries > clients:
            raise UserError(f"attack.adversaries={self.adversaries}: there are {clients} clients")
        order = torch.randperm(clients, generator=seeds.generator(seed, "adversaries"))
        return sorted(order[: self.adversaries].tolist())

    def suits(self, example: Examples, classes: int) -> None:
        """Raise UserError where examples of this kind, of so many classes, cannot be poisoned so."""

    def at(self, round: int) -> "Attack":
        """What the adversaries are up to in this round."""
        return self

    def poison(self, examples: Examples, generator: torch.Generator) -> Examples:
        """The examples that an adversary trains on, from its own."""
        return examples

    def forge(self, update: Tensors, sight: Sight) -> Tensors:
        """What an adversary claims to have learnt, from what training gave."""
        return update

    def collude(
        self, honest: dict[int, Tensors], own: dict[int, Tensors], generator: torch.Generator
    ) -> dict[int, Tensors]:
        """What the adversaries claim, of whom `own` has what they would, who see what the `honest` have uploaded.

        Neither is empty, both are in client order. `generator` is the round's.
        """
        return own

    def success(self, client: Client) -> dict[str, float]:
        """How far the attack reaches its aim at this client's model, where it has one: ``attack_success``, 0 to 1."""
        return {}
