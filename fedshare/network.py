"""Where the clients are."""

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from fedshare import seeds
from fedshare.client import Client
from fedshare.payload import Payload, Quota
from fedshare.state import State
from fedshare.strategy import Strategy


class Purpose(Enum):
    """What a client is asked to do with a download."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class NotAwaited(str):
    """Why an answer is missing: enough others had answered. That is nobody's fault, and halts no run."""


Heard = Callable[[Purpose, int, int, int], None]  # of a purpose and a round: how many have answered, of how many


class Network(Protocol):
    def client_ids(self) -> list[int]:
        """Everyone who may be asked now, as stable small integers, sorted. Raises RunHalted where they are too few."""
        ...

    def exchange(self, purpose: Purpose, round: int, downloads: dict[int, Payload]) -> dict[int, Payload]:
        """Each client's answer to its download. Who does not answer in time is not among them."""
        ...

    def allow(self, quotas: Callable[[int], Quota]) -> None:
        """What is expected of each client's answer to the next exchange: who may send anything is held to it."""
        ...

    def watch(self, heard: Heard) -> None:
        """Call `heard` when an exchange begins, and for each answer or failure as it comes."""
        ...

    def absent(self) -> dict[int, str]:
        """Why those who did not answer the last exchange did not, where it is known."""
        ...

    def suspended(self) -> dict[int, str]:
        """Who is left out for a while by `client_ids`, since it was last asked, and why."""
        ...

    def digests(self) -> dict[int, dict[str, str]]:
        """What each client of the last TRAIN exchange remembers now, as `fedshare.state.digests`."""
        ...

    @property
    def remote(self) -> bool:
        """Whether clients keep their memories themselves: a checkpoint then holds the round of each, and no more."""
        ...

    def remember(self) -> dict[int, State]:
        """What a checkpoint must hold of each client: all it remembers, or the ``round`` after which it last did."""
        ...

    def recall(self, memories: dict[int, State], round: int) -> None:
        """Go on from what `remember` gave at the checkpoint of `round`."""
        ...

    def kept(self, round: int) -> None:
        """`round` is that of the oldest checkpoint from which the run may go on."""
        ...


class Peers(Protocol):
    """Where the others are, when there is no server."""

    def ids(self) -> list[int]:
        """Everyone, as stable small integers, sorted."""
        ...

    def gather(self, round: int, upload: Payload | None) -> dict[int, Payload]:
        """What all have for this round, by id, one's own among it; None: one has nothing. Everybody gets the same.

        Raises RunHalted, saying for whom it has waited, where somebody is silent for too long.
        """
        ...


def answer(strategy: Strategy, client: Client, purpose: Purpose, round: int, download: Payload) -> Payload:
    """The client's side of an exchange, in every mode.

    Dropout, and all else that asks torch's own generator, gets a stream of this client, round and purpose.
    """
    with seeds.scope(client.seed, purpose.value, round, client.id):
        client.download = download
        strategy.apply(client, download)
        if purpose is Purpose.TRAIN:
            return strategy.pack(strategy.train(client, round))
        strategy.personalise(client, round)
        return client.evaluate()
