"""Adversaries that lie only in some rounds."""

import math
from dataclasses import dataclass

from fedshare.attacks.attack import Attack
from fedshare.attacks.limits import limit
from fedshare.client import Client
from fedshare.data.dataset import Examples
from fedshare.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OnOff(Attack):
    """Honest for `start` rounds, to gain trust; then alternately `active` rounds of an attack and `quiet` rounds.

    The adversaries are this attack's own: those of the inner attack are ignored.
    """

    attack: Attack  # the attack in active rounds
    start: int = 10  # number of honest rounds at the beginning
    active: int = 5  # rounds with the attack
    quiet: int = 5  # rounds without

    def __post_init__(self) -> None:
        super().__post_init__()
        limit(self, 0, math.inf, "start", "quiet")
        limit(self, 1, math.inf, "active")
        if not isinstance(self.attack, Attack):
            raise UserError(f"attack: is a {type(self.attack).__name__}, not an attack")

    def suits(self, example: Examples, classes: int) -> None:
        self.attack.suits(example, classes)

    def at(self, round: int) -> Attack:
        """Return the attack of this round, counted from 1."""
        since = round - 1 - self.start
        lies = since >= 0 and since % (self.active + self.quiet) < self.active
        return self.attack.at(round) if lies else Attack(adversaries=self.adversaries)

    def success(self, client: Client) -> dict[str, float]:
        return self.attack.success(client)
