"""Where the clients are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedshare import seeds
from fedshare.client import Client
from fedshare.payload import Payload, Quota
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy

__all__ = ["LATE", "Exchange", "Heard", "Memories", "Network", "NotAwaited", "Peers", "Purpose", "Quotas", "answer"]


LATE = "late: "  # how the reason begins why an answer is missing that nobody waited for, in a row


class NotAwaited(str):
    """Why an answer is missing: enough others had answered. That is nobody's fault, and halts no run."""


Heard = Callable[[Purpose, int, int, int], None]  # of a purpose and a round: how many have answered, of how many
Quotas = Callable[[int], Quota]  # by client: how much its answer may hold


@dataclass(frozen=True)
class Exchange:
    """What has come of a round's downloads."""

    answers: dict[int, Payload]  # by client id, sorted
    absent: dict[int, str] = field(default_factory=dict)  # why the others did not answer, where it is known
    digests: dict[int, dict[str, str]] = field(default_factory=dict)  # what clients remember now (`state.digests`)
    suspended: dict[int, str] = field(default_factory=dict)  # whom `client_ids` has left out for a while, and why


class Memories(Protocol):
    """What clients remember: held here, or by the clients themselves."""

    @property
    def remote(self) -> bool:
        """Whether clients keep their memories themselves: a checkpoint then holds the round of each, and no more."""
        ...

    def remember(self) -> dict[int, State]:
        """What a checkpoint must hold of each client: all it remembers, or the ``round`` after which it last did."""
        ...

    def recall(self, memories: dict[int, State], round: int) -> None:
        """Go on from what `remember` returned at the checkpoint of `round`."""
        ...

    def keep(self, round: int) -> None:
        """Keep what is needed to go on from `round`, which is that of the oldest checkpoint, and later ones."""
        ...


class Network(Protocol):
    @property
    def memories(self) -> Memories: ...

    def client_ids(self) -> list[int]:
        """Everyone who may be asked now, as stable small integers, sorted. Raises RunHalted where they are too few."""
        ...

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        """Send each client its download and collect the answers.

        An answer that is larger than its quota is refused unread, where a network takes answers from outside. `heard`
        is called at the beginning and for each answer or failure. Digests come after training only.
        """
        ...


class Peers(Protocol):
    """Where the others are, when there is no server."""

    def ids(self) -> list[int]:
        """Everyone, as stable small integers, sorted."""
        ...

    def gather(self, round: int, upload: Payload | None) -> dict[int, Payload]:
        """What all have for this round, by id, including one's own; None: one has nothing. Everybody gets the same.

        Raises RunHalted, naming who is waited for, where somebody is silent for too long.
        """
        ...


def answer(strategy: Strategy, client: Client, purpose: Purpose, round: int, download: Payload) -> Payload:
    """The client's side of an exchange, in every mode.

    Dropout, and everything else that uses torch's global generator, gets a stream of this client, round and purpose.
    """
    with seeds.scope(client.seed, purpose.value, round, client.id):
        strategy.apply(client, download)
        if purpose is Purpose.TRAIN:
            return strategy.form.encode(strategy.train(client, round, download))
        return strategy.evaluate(client, round)
