"""The number of rounds, and the clients that take part in each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fedshare import seeds
from fedshare.payload import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The number of rounds, and the clients that take part in each."""

    rounds: int  # the last round
    seed: int
    clients_per_round: int | None = None  # sampled without replacement; None, or more than there are: all
    evaluate_every: int = 1  # test every client after each this many rounds, and after the last; 0: never
    evaluate_first: bool = False  # also test every client before round 1: the ``before`` of its row
    max_examples: int = 10**9  # an upload that claims more examples than this is dropped,
    sizes: Mapping[int, int] = field(default_factory=dict)  # or more than this client is known to have
    tests: Mapping[int, int] = field(default_factory=dict)  # test examples that a client is known to have;
    validations: Mapping[int, int] = field(default_factory=dict)  # a test on more than these is invalid
    targets: int = 1  # the most targets per example
    clients: int | None = None  # number of clients: lower ids that the network lacks are absent; None: unknown,
    # and then the absent ones are those seen before
    unseen: tuple[int, ...] = ()  # clients that never train, and are tested as new clients
    max_norm_ratio: float | None = None  # drop updates longer than this many times the round's median; None: no limit
    halt_weakened: bool = False  # halt the run in a round with too few clients for the strategy's guarantee

    def most(self, client: int) -> int:
        """The most examples that an upload of this client may claim."""
        return self.sizes.get(client, self.max_examples)

    def most_tested(self, client: int) -> int:
        """The most targets that this client's test may be on."""
        return self.tests[client] * self.targets if client in self.tests else UNKNOWN

    def most_validated(self, client: int) -> int:
        return self.validations[client] * self.targets if client in self.validations else UNKNOWN


def sample(client_ids: list[int], count: int | None, seed: int, round: int) -> list[int]:
    """Return the clients of a round, sorted."""
    if count is None or count >= len(client_ids):
        return list(client_ids)
    order = torch.randperm(len(client_ids), generator=seeds.generator(seed, "sample", round))
    return sorted(client_ids[position] for position in order[:count].tolist())
