"""Just One Byte (per Gradient): participants send a byte for each direction that they have tried, and no model.

Zelikman et al., "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using
Shared Randomness", 2023, arXiv 2306.10015; the steps are SPSA's (Spall 1992; MeZO, Malladi et al. 2023). Everybody
knows each other's directions z by who sent which message, and goes down by ``lr * p * z`` for every projected gradient
p. The model is the initial one and the ledger of these bytes, in integers (`fedshare.ledger`).

What the paper's code does otherwise: it sends floats, and its sender does not apply what receivers decode; its sign and
exponent are 9 bits; its seeds may be equal for different samples; its weights drift as directions are added and taken.
Here p's byte is what all apply, the sender too; steps are summed by default (``scaling``), where it divides by root n.
"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedshare import seeds
from fedshare.client import Client
from fedshare.directions import PROBES
from fedshare.directions.gaussian import Gaussian
from fedshare.directions.perturb import settle
from fedshare.directions.rademacher import Rademacher
from fedshare.errors import UserError
from fedshare.forms.codes import Codes
from fedshare.ledger import Commit, Manifest
from fedshare.ledger.coding import Byte, Coding, Float, Sign
from fedshare.ledger.meaning import MESSAGES, Directions, Meaning
from fedshare.ledger.replica import Replica
from fedshare.ledger.steps import SCALINGS, Steps
from fedshare.ledger.sums import Sums
from fedshare.ledger.transcript import Transcript, kept, telling
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors, digest, flatten, parameters


@dataclass(frozen=True, kw_only=True)
class OneByte(Strategy):
    lr: float = 0.001  # the step size: what a projected gradient is multiplied by
    epsilon: float = 0.001  # how far the model is moved along a direction, up and down, to measure
    probes: int = 8  # directions that a client tries each round, and so the bytes that it sends
    coding: Literal["byte", "sign", "float"] = "byte"  # what of a projected gradient travels; float: four bytes
    rounding: Literal["nearest", "stochastic"] = "nearest"  # to a byte; stochastic is right on average
    scaling: Literal["sum", "root", "mean"] = "sum"  # of the steps of all probes of a round; root: by the root of n
    directions: Literal["rademacher", "gaussian"] = "rademacher"  # signs; or the paper's, not equal on all machines
    warmup: int = 0  # rounds in which the step size rises
    horizon: int = 0  # the round at which the step size, falling evenly after the warm-up, is zero; 0: it stays
    pool: int = 0  # messages that have directions of their own, and all others one of theirs (FedKSeed); 0: all have
    run: int = 0  # the key of all directions

    optimizes: ClassVar[bool] = False
    CODINGS: ClassVar[dict[str, Coding]] = {"byte": Byte(), "sign": Sign(), "float": Float()}
    DIRECTIONS: ClassVar[dict[str, Directions]] = {"rademacher": Rademacher(), "gaussian": Gaussian()}

    def __post_init__(self) -> None:
        for name in ("lr", "epsilon"):
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise UserError(f"{name} must be positive, not {value}")
        most = {"probes": PROBES * MESSAGES, "warmup": 2**31, "horizon": 2**31, "pool": 2**31, "run": 2**64 - 1}
        for name, limit in most.items():
            if not (least := int(name == "probes")) <= (number := getattr(self, name)) <= limit:
                hint = ", the seed" if name == "run" else ""
                raise UserError(f"{name} must be {least} to {limit}, not {number}{hint}")
        if 0 < self.horizon <= self.warmup:
            raise UserError(f"horizon={self.horizon}: must be after warmup={self.warmup}, or 0")
        for name, known in (
            ("coding", self.CODINGS.keys()),
            ("directions", self.DIRECTIONS.keys()),
            ("rounding", ("nearest", "stochastic")),
            ("scaling", SCALINGS),
        ):
            if (chosen := getattr(self, name)) not in known:
                raise UserError(f"{name} must be {', '.join(known)}, not {chosen}")
        if self._fraction() > 63 or self.steps.whole >= 2**24:
            small = "small" if self.lr < 1 else "large"
            raise UserError(
                f"lr={self.lr}: too {small} for coding={self.coding}, scaling={self.scaling}, {self.directions}"
            )

    @property
    def form(self) -> Codes:  # type: ignore[override]  # of a strategy with one coding it is an attribute
        return Codes(self.CODINGS[self.coding])

    def init(self, params: Tensors, clients: int) -> State:
        initial = flatten(parameters(params))
        manifest = self.manifest(params)
        return {
            "params": params,
            "initial": initial,
            "sums": Sums.zeros(len(initial)).values,
            "bound": 0,
            "manifest": manifest.pack().decode(),
            "ledger": Transcript.begin(manifest).save(),
            "told": {},  # up to which round each client knows the ledger
        }

    def manifest(self, params: Tensors) -> Manifest:
        model, directions = parameters(params), self.DIRECTIONS[self.directions]
        return Manifest(
            run=self.run,
            layout=[(name, list(tensor.shape)) for name, tensor in model.items()],
            initial=digest(flatten(model)),
            codes=self.CODINGS[self.coding].name,
            directions=directions.name,
            fraction=self._fraction(),
            pool=self.pool,
        )

    @property
    def steps(self) -> Steps:
        return Steps(self.lr, self.scaling, self.warmup, self.horizon)

    def _fraction(self) -> int:
        return self.CODINGS[self.coding].bits + self.DIRECTIONS[self.directions].bits + self.steps.bits

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        return telling(self._ledger(state), state["sums"], state["told"].get(client_id, 0))

    def apply(self, client: Client, download: Payload) -> None:
        replica, known = self._replica(client), self._known(client)
        client.load({})
        replica.follow(*known.heard(download))
        replica.show()

    def _replica(self, client: Client) -> Replica:
        return client.once(self, lambda: Replica(Meaning(self.manifest(client.initial)), client.vector, client.first))

    def _known(self, client: Client) -> Transcript:
        manifest = self._replica(client).meaning.manifest
        return Transcript.restore(client.state.get("ledger", {}), manifest)

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        replica = self._replica(client)
        known, _ = self._known(client).heard(download)
        if len(known.commits) > (sums := replica.sums()).nbytes:
            known = known.snapshot(sums.clone())
        client.state["ledger"] = known.save()

        up, down = self._probe(client, round).unbind(1)
        if client.local:  # which never travels, and so may be trained as ever
            client.fit(round, client.local)
        projected = (up - down) / (2 * self.epsilon)
        if self.rounding == "stochastic":
            generator = seeds.generator(client.seed, "rounding", round, client.id)
            threshold = torch.rand(self.probes, generator=generator, dtype=torch.float64).numpy()
            coding = self.CODINGS[self.coding]
            projected = coding.decode(coding.encode(projected, threshold))  # which has one code, whatever rounds it
        metrics = {"examples": float(len(client.train_examples))}
        if bool((loss := ((up + down) / 2).nanmean()).isfinite()):
            metrics["train_loss"] = float(loss)
        return Payload({"update": {"projected": projected}}, metrics)

    def _probe(self, client: Client, round: int) -> Tensor:
        """The losses up and down each direction ``[probes, 2]``, those of a message on a batch of its own."""
        replica, messages, losses = self._replica(client), -(-self.probes // PROBES), []
        with torch.no_grad():
            for message, batch in enumerate(islice(client.batches(round, epochs=messages), messages)):
                origin = replica.meaning.origin(client.id, round, message)
                probes = min(PROBES, self.probes - PROBES * message)
                loss, together = partial(client.loss, batch), partial(client.losses, batch)
                losses.append(replica.probe(origin, probes, self.epsilon, client.size, loss, together))
        return torch.cat(losses)

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"codes": {"codes": self.CODINGS[self.coding].encode(torch.zeros(self.probes))}}

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        said = {client: upload.tensors["codes"]["codes"].numpy().tobytes() for client, upload in uploads.items()}
        commit = Commit(round, self.steps.at(round, self.probes * len(said)), dict(sorted(said.items())))
        meaning = Meaning.of(state["manifest"])
        sums = Sums(state["sums"].clone(), state["bound"])
        sums.add(meaning.directions, meaning.entries(commit))
        vector = torch.empty_like(state["initial"])
        settle(vector, state["initial"], sums.values, meaning.manifest.fraction)
        before = self._ledger(state)
        return state | {
            "params": state["params"] | meaning.manifest.parameters(vector),
            "sums": sums.values,
            "bound": sums.bound,
            "ledger": before.extended(commit).trimmed(sums.values.nbytes).save(),
            # Who is heard has heard all that was committed before.
            "told": dict(sorted((state["told"] | dict.fromkeys(said, before.round)).items())),
        }

    def _ledger(self, state: State) -> Transcript:
        found = kept(state)
        assert found is not None
        return found[1]
