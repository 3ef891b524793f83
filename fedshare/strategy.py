"""A federated algorithm, both halves, as the five steps of a round."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, ClassVar

from fedshare.client import Client
from fedshare.ledger import Manifest
from fedshare.ledger.transcript import Transcript
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.tensors import Tensors


class Strategy(ABC):
    """One paper, one file, in the order of a round.

    Fields are hyperparameters and nothing else is kept on self: the server remembers in `state`, a client in
    `client.state`, both plain nested data (`fedshare.state`). `aggregate` is deterministic and independent of the order
    in which uploads came, so a server or every peer may run it. By convention ``state["params"]`` is the global model,
    where there is one.
    """

    optimizes: ClassVar[bool] = True  # whether clients train what they share with the config's optimizer, in `fit`

    @abstractmethod
    def init(self, params: Tensors) -> State:
        """The server's memory before round 1, from the model that everyone starts with."""

    @abstractmethod
    def download(self, state: State, client_id: int) -> Payload | None:
        """What the server sends this client; None leaves it out of the round."""

    @abstractmethod
    def apply(self, client: Client, download: Payload) -> None:
        """Make `client.model` the model this client is to use. Writes nothing else and may be repeated."""

    @abstractmethod
    def train(self, client: Client, round: int) -> Payload:
        """Learn from the client's examples; the upload. May write `client.state`."""

    @abstractmethod
    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        """The server's memory after the round. `uploads`, by client id, is never empty and holds only usable ones."""

    def personalise(self, client: Client, round: int) -> None:  # noqa: B027  # most have nothing to do
        """Before a test, after `apply`: make the model the client's own. What the client remembers stays as it is."""

    def test_download(self, state: State, client_id: int) -> Payload | None:
        """What the server sends this client for a test; None: it is not tested. By default as for training."""
        return self.download(state, client_id)

    def weakness(self, clients: Collection[int]) -> str | None:
        """Why the strategy cannot keep what it promises with uploads of these clients alone; None where it can."""
        return None

    def report(self, state: State) -> dict[str, Any]:
        """What a person looks at after a round, beside accuracy and bytes: plain data, which its row then holds.

        By convention ``weights`` is each client's share in the round's average, and ``removed`` who is out for good and
        since which round, both by client id as a text.
        """
        return {}

    def ledger(self, state: State) -> tuple[Manifest, Transcript] | None:
        """The ledger that is the model, where there is one. A run keeps all of its commits."""
        return None

    def pack(self, upload: Payload) -> Payload:
        """What `train` gave, as it is to travel."""
        return upload

    def unpack(self, upload: Payload, expected: dict[str, Tensors]) -> Payload:
        """What has travelled, as `train` gave it; `expected` is as `expects` has it.

        Anyone may have sent it: raises ValueError, saying what is wrong, where nobody's `pack` gives such a thing.
        """
        return upload

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        """What this client's upload must look like, unpacked: groups, names, shapes, types; or else it is dropped."""
        return {"params": state["params"]}
