"""A federated algorithm, server and client side, as the five steps of a round."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from enum import Enum
from typing import Any, ClassVar, Protocol, runtime_checkable

from fedshare.client import Client
from fedshare.forms import Dense, Form
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.tensors import Tensors


class Purpose(Enum):
    """The purpose for which a client receives a download."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class Strategy(ABC):
    """One paper, one file, in the order of a round.

    Fields are hyperparameters, and nothing else is kept on self: the server's memory is `state`, a client's is
    `client.state`, both plain nested data (`fedshare.state`). `aggregate` is deterministic and independent of the order
    in which uploads arrive, so a server or every peer may run it. By convention ``state["params"]`` is the global
    model, if there is one, and ``state["ledger"]`` the ledger of which the model consists (`ledger.transcript.kept`).
    """

    optimizes: ClassVar[bool] = True  # whether clients train the shared part with the config's optimizer, in `fit`
    form: ClassVar[Form] = Dense()  # the encoding of an upload for sending
    reports: ClassVar[dict[str, str]] = {}  # the keys that `report` may return, and their meanings

    @abstractmethod
    def init(self, params: Tensors, clients: int) -> State:
        """Return the server's memory before round 1, from the initial model and the number of clients."""

    @abstractmethod
    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        """Return what the server sends this client for training or testing; None leaves the client out."""

    @abstractmethod
    def apply(self, client: Client, download: Payload) -> None:
        """Make `client.model` the model that this client should use. Writes nothing else and may be repeated."""

    @abstractmethod
    def train(self, client: Client, round: int, download: Payload) -> Payload:
        """Train on the client's examples and return the upload. May write `client.state`. Called after `apply`."""

    @abstractmethod
    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        """Return the server's memory after the round. `uploads`, by client id, is nonempty and has only valid ones."""

    # Optional methods.

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        """Return the groups, names, shapes and types of this client's upload. Any other upload is dropped."""
        return {"params": state["params"]}

    def evaluate(self, client: Client, round: int) -> Payload:
        """Test the client's model, after `apply`, and after personalising it if the method does. `client.state` is a
        copy that is discarded."""
        return client.evaluate()

    def report(self, state: State) -> dict[str, Any]:
        """Return what people look at after a round, beside accuracy and bytes: plain data, stored in the round's row.

        Its keys are those of `reports`. By convention ``weights`` is each client's share in the round's average, and
        ``removed`` the round since which a client is excluded, both by client id as a string.
        """
        return {}


@runtime_checkable
class Withstands(Protocol):
    """A strategy that promises to withstand some dishonest clients, if enough honest ones take part."""

    def weakness(self, clients: Collection[int]) -> str | None:
        """Return why the promise cannot be kept with the uploads of only these clients; None if it can."""
        ...


def weakness(strategy: Strategy, clients: Collection[int]) -> str | None:
    """Return why the strategy cannot keep its promise with these clients; None if it can, or promises nothing."""
    return strategy.weakness(clients) if isinstance(strategy, Withstands) else None


@runtime_checkable
class Averages(Protocol):
    """A strategy without a global model: the average of the participants' models is tested, too."""

    def averaged(self, downloads: dict[int, Payload]) -> dict[int, Payload]:
        """Return these downloads for testing with the mean of their models in place of each; empty without models."""
        ...


def average(strategy: Strategy, downloads: dict[int, Payload]) -> dict[int, Payload]:
    """Return the downloads with the average model; empty if the strategy has a global one, or none."""
    return strategy.averaged(downloads) if isinstance(strategy, Averages) else {}
