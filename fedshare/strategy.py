"""A federated algorithm, both halves, as the five steps of a round."""

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
    """What a client is asked to do with a download."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class Strategy(ABC):
    """One paper, one file, in the order of a round.

    Fields are hyperparameters, and nothing else is kept on self: the server remembers in `state`, a client in
    `client.state`, both plain nested data (`fedshare.state`). `aggregate` is deterministic and independent of the order
    in which uploads arrive, so a server or every peer may run it. By convention ``state["params"]`` is the global
    model, where there is one, and ``state["ledger"]`` the ledger that the model is made of (`ledger.transcript.kept`).
    """

    optimizes: ClassVar[bool] = True  # whether clients train what they share with the config's optimizer, in `fit`
    form: ClassVar[Form] = Dense()  # how an upload travels
    reports: ClassVar[dict[str, str]] = {}  # the keys that `report` may return, and what each means

    @abstractmethod
    def init(self, params: Tensors, clients: int) -> State:
        """The server's memory before round 1, from the model that everyone starts with, of so many clients."""

    @abstractmethod
    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        """What the server sends this client, to train or to be tested; None leaves the client out."""

    @abstractmethod
    def apply(self, client: Client, download: Payload) -> None:
        """Make `client.model` the model that this client is to use. Writes nothing else and may be repeated."""

    @abstractmethod
    def train(self, client: Client, round: int, download: Payload) -> Payload:
        """Train on the client's examples and return the upload. May write `client.state`. Called after `apply`."""

    @abstractmethod
    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        """The server's memory after the round. `uploads`, by client id, is never empty and holds only valid ones."""

    # Options.

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        """What this client's upload must look like: groups, names, shapes, types. Any other upload is dropped."""
        return {"params": state["params"]}

    def evaluate(self, client: Client, round: int) -> Payload:
        """Test the client's model, after `apply`: personalise it first where the method does. `client.state` is a copy
        that is thrown away."""
        return client.evaluate()

    def report(self, state: State) -> dict[str, Any]:
        """What a person looks at after a round, beside accuracy and bytes: plain data, stored in the round's row.

        Its keys are those of `reports`. By convention ``weights`` is each client's share in the round's average, and
        ``removed`` the round since which a client is excluded, both by client id as a text.
        """
        return {}


@runtime_checkable
class Withstands(Protocol):
    """A strategy that promises to withstand some dishonest clients, if enough honest ones take part."""

    def weakness(self, clients: Collection[int]) -> str | None:
        """Why the promise cannot be kept with the uploads of these clients alone; None where it can."""
        ...


def weakness(strategy: Strategy, clients: Collection[int]) -> str | None:
    """Why the strategy cannot keep its promise with these clients; None where it can, or promises nothing."""
    return strategy.weakness(clients) if isinstance(strategy, Withstands) else None
