"""A network wrapper for colluding adversaries, between the server and the clients."""

from dataclasses import replace

from fedshare import seeds
from fedshare.attacks.attack import Attack
from fedshare.attacks.update import CHANGE, MODEL, read, write
from fedshare.machine.threads import one_thread
from fedshare.network import Exchange, Heard, Memories, Network, Purpose, Quotas
from fedshare.payload import Payload
from fedshare.strategy import Strategy
from fedshare.tensors import Tensors


class Colluding:
    """A `Network` in which the adversaries agree on their uploads after they have seen all others.

    It runs beside the server, which sees as much, so the clients may be anywhere. `initial` is the initial model. An
    honest client's unusable upload is ignored.
    """

    def __init__(
        self,
        network: Network,
        strategy: Strategy,
        attack: Attack,
        adversaries: list[int],
        initial: Tensors,
        seed: int,
    ) -> None:
        self._network, self._strategy, self._attack, self._adversaries = network, strategy, attack, adversaries
        self._initial, self._seed = initial, seed

    @property
    def memories(self) -> Memories:
        return self._network.memories

    def client_ids(self) -> list[int]:
        return self._network.client_ids()

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        exchange = self._network.exchange(purpose, round, downloads, quotas, heard)
        answers = dict(exchange.answers)
        liars, attack = [client for client in self._adversaries if client in answers], self._attack.at(round)
        if purpose is not Purpose.TRAIN or not liars or type(attack).collude is Attack.collude:
            return exchange
        known = {
            client: found for client in sorted(answers) if (found := self._read(answers[client], downloads[client]))
        }
        updates = {client: update for client, (_, _, update) in known.items()}
        honest = {client: update for client, update in updates.items() if client not in liars and _finite(update)}
        own = {client: updates[client] for client in liars if updates.get(client)}
        if honest and own:
            generator = seeds.generator(self._seed, "collude", round)
            with one_thread():  # otherwise the last bits of sums would depend on the number of threads
                for client, update in attack.collude(honest, own, generator).items():
                    upload, start, _ = known[client]
                    answers[client] = self._strategy.form.encode(write(upload, start, update))
        return replace(exchange, answers=answers)

    def _read(self, upload: Payload, download: Payload) -> tuple[Payload, Tensors, Tensors] | None:
        """Return the upload decoded, the model it started from, and the update; None if the server will drop it."""
        start = self._initial | download.tensors.get(MODEL, {})
        try:
            upload = self._strategy.form.decode(upload, {CHANGE: self._initial})
            update = read(upload, start)
        except (ValueError, KeyError, RuntimeError, AttributeError, TypeError):
            return None
        likes = {path: start.get(path.split("/", 1)[1]) for path in update}
        fits = all(like is not None and like.shape == update[path].shape for path, like in likes.items())
        return (upload, start, update) if fits else None


def _finite(update: Tensors) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in update.values())
