"""The interfaces to the clients."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedshare.client import Client
from fedshare.payload import Payload, Quota
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy

__all__ = [
    "LATE",
    "Exchange",
    "Heard",
    "Memories",
    "Network",
    "NotAsked",
    "NotAwaited",
    "Peers",
    "Purpose",
    "Quotas",
    "answer",
]


LATE = "late: "  # begins the reason, in a round's row, for a missing answer that was not waited for


class NotAwaited(str):
    """The reason for a missing answer when enough others had answered, or when the links say that the client crashes.

    It halts no run, however many there are.
    """


class NotAsked(NotAwaited):
    """The reason for a missing answer of a client that answers elsewhere, as peers that test their own models do."""


Heard = Callable[[Purpose, int, int, int], None]  # called with purpose, round, and how many of how many have answered
Quotas = Callable[[int], Quota]  # by client: the limit on its answer


@dataclass(frozen=True)
class Exchange:
    """The results of a round's downloads."""

    answers: dict[int, Payload]  # by client id, sorted
    absent: dict[int, str] = field(default_factory=dict)  # by client: why it did not answer, if known
    digests: dict[int, dict[str, str]] = field(default_factory=dict)  # of clients' new memories (`state.digests`)
    suspended: dict[int, str] = field(default_factory=dict)  # clients that `client_ids` leaves out for a while, and why
    events: dict[str, list[int]] = field(default_factory=dict)  # who joins, leaves, crashes and rejoins in the round


class Memories(Protocol):
    """The clients' memories, held here or by the clients themselves."""

    @property
    def remote(self) -> bool:
        """Whether clients keep their memories themselves; a checkpoint then holds only each one's round."""
        ...

    def remember(self) -> dict[int, State]:
        """Return what a checkpoint must hold per client: its memory, or the ``round`` after which it last changed."""
        ...

    def recall(self, memories: dict[int, State], round: int) -> None:
        """Restore what `remember` returned at the checkpoint of `round`."""
        ...

    def keep(self, round: int) -> None:
        """Keep what is needed to continue from `round`, that of the oldest checkpoint, and from later rounds."""
        ...


class Network(Protocol):
    @property
    def memories(self) -> Memories: ...

    def client_ids(self) -> list[int]:
        """Return the available clients, as stable small integers, sorted; another list if they are others.

        Raises RunHalted if there are too few.
        """
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

        A network that takes answers from outside rejects an answer beyond its quota unread. `heard` is called at the
        beginning and for each answer or failure. Digests are returned after training only.
        """
        ...


class Peers(Protocol):
    """The other participants, when there is no server."""

    def ids(self, round: int) -> list[int]:
        """Return the peers whose uploads this one aggregates in `round`, as stable small integers, sorted.

        They include this peer. Empty if it takes no part in the round. Called once a round, in order.
        """
        ...

    def gather(self, round: int, upload: Payload | None, quotas: Quotas | None = None) -> dict[int, Payload]:
        """Return the uploads of the round, by peer, this peer's included; None sends nothing.

        Uploads beyond their quota are not read. Raises RunHalted, naming the peers, if some that are needed do not
        answer in time.
        """
        ...


def answer(strategy: Strategy, client: Client, purpose: Purpose, round: int, download: Payload) -> Payload:
    """Carry out the client's side of an exchange and return its answer, in every mode.

    Torch's global generator, used by dropout and others, gets a stream for this client, round and purpose.
    """
    with client.engine.scope(client.seed, purpose.value, round, client.id):
        strategy.apply(client, download)
        if purpose is Purpose.TRAIN:
            return strategy.form.encode(strategy.train(client, round, download))
        return strategy.evaluate(client, round)
