"""How many rounds there are, and who takes part in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fedshare import seeds
from fedshare.payload import UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many rounds, and who takes part in them."""

    rounds: int  # the last round
    seed: int
    clients_per_round: int | None = None  # sampled without replacement; None, or more than there are: all
    evaluate_every: int = 1  # test every client after each this many rounds, and after the last; 0: never
    evaluate_first: bool = False  # test every client before round 1, too: the ``before`` of its row
    max_examples: int = 10**9  # an upload that claims to stand for more is dropped,
    sizes: Mapping[int, int] = field(default_factory=dict)  # or for more than what the client is known to have
    tests: Mapping[int, int] = field(default_factory=dict)  # how many test examples a client is known to have; a test
    validations: Mapping[int, int] = field(default_factory=dict)  # of more, or on more that validate, does not count
    targets: int = 1  # the most targets of an example
    clients: int | None = None  # how many there are: ids below it that the network lacks are absent; None: unknown,
    # and then those are that it had before
    unseen: tuple[int, ...] = ()  # clients that never train, and are tested as newcomers
    max_norm_ratio: float | None = None  # an update longer than so many times the round's median is dropped; None: none
    halt_weakened: bool = False  # end the run in a round whose clients are too few for what the strategy promises

    def most(self, client: int) -> int:
        """How many examples an upload of this client may stand for."""
        return self.sizes.get(client, self.max_examples)

    def most_tested(self, client: int) -> int:
        """How many targets this client's test may be on."""
        return self.tests[client] * self.targets if client in self.tests else UNKNOWN

    def most_validated(self, client: int) -> int:
        return self.validations[client] * self.targets if client in self.validations else UNKNOWN


def sample(client_ids: list[int], count: int | None, seed: int, round: int) -> list[int]:
    """The clients of a round, sorted."""
    if count is None or count >= len(client_ids):
        return list(client_ids)
    order = torch.randperm(len(client_ids), generator=seeds.generator(seed, "sample", round))
    return sorted(client_ids[position] for position in order[:count].tolist())
