"""The light clients of a crowd, for the fedshare on the path, in their own process."""

import importlib
import importlib.util
import ssl
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

FLOWER = ("apps", "envelope", "grid", "inprocess", "network", "participant", "stream")
OLDER = {  # where a checkout of fedshare 0.2 has these modules
    "fedshare.training.scratch": "fedshare.scratch",
    "fedshare.identity.identity": "fedshare.keys",
    "fedshare.identity.keys": "fedshare.keys",
    "fedshare.transport.flower": "fedshare.flower",
    **{f"fedshare.transport.flower.{name}": f"fedshare.flower.{name}" for name in FLOWER},
    "fedshare.transport.stream": "fedshare.stream",
    **{f"fedshare.transport.stream.{name}": f"fedshare.stream.{name}" for name in ("server", "frames")},
    "fedshare.transport.stream.settings": "fedshare.stream.server",
}


def by_new_names() -> None:
    """Make an older checkout's modules importable by the names that they have in this one."""
    if importlib.util.find_spec("fedshare.transport") is None:
        for new, old in OLDER.items():
            sys.modules[new] = importlib.import_module(old)


def population(clients: int) -> Any:
    import torch
    from torch import nn

    from fedshare import seeds
    from fedshare.client import Training
    from fedshare.data.dataset import Examples
    from fedshare.simulation import Part, Population
    from fedshare.strategies.fedavg import FedAvg
    from fedshare.training.scratch import Scratch

    one = Examples(torch.zeros(1, 64), torch.zeros(1, dtype=torch.long))
    training = Training(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    with seeds.scope(0, "model"):
        model = nn.Linear(64, 10)
    return Population(FedAvg(), Scratch(model), training, [Part(one, one)] * clients, 0)


def recorded(clients: int, folder: str) -> Callable[[int, bytearray], bytes]:
    """Return a function that gives a real ClientApp's answers: each client's own identity, else the first client's."""
    from flwr.app import Context, RecordDict, UserConfig

    from fedshare.transport.flower import private
    from fedshare.transport.flower.apps import client_app
    from fedshare.transport.flower.envelope import seal, unseal
    from fedshare.transport.flower.grid import arrived, node_of
    from fedshare.transport.flower.inprocess import ask

    app = client_app(lambda run_config, node_config: ("", population(clients)))
    private.enter_run()
    known: dict[bytes, bytes] = {}

    def answer(client: int, body: bytearray) -> bytes:
        kind = bytes(body[4:24])
        if kind in known:
            return known[kind]
        letter, node = unseal(body), node_of(client)
        config: UserConfig = {"partition-id": client, "num-partitions": clients, "state-dir": folder}
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
        assert letter.content is not None
        said = ask(app, arrived(node, "", letter.type, letter.group, letter.content), context)
        assert not said.has_error(), said.error.reason
        given = b"".join(seal(said))
        if letter.type in ("train", "evaluate"):
            known[kind] = given
        return given

    return answer


def clients(address: str, keys: str, bare: bool, orders: Connection) -> None:
    """Run the number of clients that the orders say, with ids from 0; without TLS if `keys` is empty."""
    import fedshare

    by_new_names()
    from light import Crowd, Light

    crowd = Crowd()
    with tempfile.TemporaryDirectory() as folder:
        most = orders.recv()
        answer = (lambda id, body: bytes(body)) if bare else recorded(most, folder)
        count = lost = 0
        while (wanted := orders.recv() if orders.poll() else count) >= 0:
            lost += len(crowd.lost)
            again, crowd.lost = crowd.lost, []
            for id in [*again, *range(count, wanted)]:  # lost clients reconnect, as real ones do
                context = _context(keys, id) if keys else None
                crowd.add(Light(address, id, fedshare.__version__, answer, context))
                crowd.step(0)
            count = wanted
            if lost > 2 * most:
                sys.exit(f"light clients lost their connection {lost} times")
            crowd.step(0.05)


def _context(keys: str, id: int) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=f"{keys}/client-{id}/ca.crt")
    context.load_cert_chain(f"{keys}/client-{id}/client.crt", f"{keys}/client-{id}/client.key")
    context.set_alpn_protocols(["h2"])
    return context
