"""Just One Byte (per Gradient): participants send one byte per direction that they have probed, and no model.

Zelikman et al., "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using
Shared Randomness", 2023, arXiv 2306.10015; the steps are SPSA's (Spall 1992; MeZO, Malladi et al. 2023). All
participants derive each other's directions z from the sender and number of a message, and descend by ``lr * p * z``
for every projected gradient p. The model follows from the initial one and the ledger of these bytes, in integer
arithmetic (`fedshare.ledger`).

Differences in the paper's code: it sends floats, and its sender does not apply what receivers decode; its sign and
exponent are 9 bits; different samples may have equal seeds; its weights drift as directions are added and subtracted.
Here all participants, the sender included, apply p's byte; steps are summed by default (``scaling``), where the code
divides by root n.
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
from fedshare.ledger.coding import Bit, Byte, Coding, Float, Sign
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
    lr: float = 0.001  # the step size: the factor of every projected gradient
    epsilon: float = 0.001  # how far the model is moved along a direction, up and down, to measure the loss
    probes: int = 8  # directions that a client probes per round, and so the number of bytes that it sends
    coding: Literal["byte", "bit", "sign", "float"] = "byte"  # how a projected gradient is sent; float: four bytes
    rounding: Literal["nearest", "stochastic"] = "nearest"  # to a byte; stochastic is unbiased
    scaling: Literal["sum", "root", "mean"] = "sum"  # of the steps of a round's n probes; root: sum / root n
    directions: Literal["rademacher", "gaussian"] = "rademacher"  # signs; or the paper's, not equal on all machines
    warmup: int = 0  # rounds over which the step size rises
    horizon: int = 0  # the round at which the step size, decaying linearly after the warm-up, reaches zero; 0: constant
    pool: int = 0  # number of distinct direction seeds, shared by all messages (FedKSeed); 0: each message has its own
    run: int = 0  # the key of all directions

    optimizes: ClassVar[bool] = False
    CODINGS: ClassVar[dict[str, Coding]] = {"byte": Byte(), "bit": Bit(), "sign": Sign(), "float": Float()}
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
        if self.probes % (many := self.CODINGS[self.coding].together):
            raise UserError(
                f"probes={self.probes}: coding={self.coding} sends {many} at a time: must be a multiple of {many}"
            )
        if self._fraction() > 63 or self.steps.whole >= 2**24:
            small = "small" if self.lr < 1 else "large"
            raise UserError(
                f"lr={self.lr}: too {small} for coding={self.coding}, scaling={self.scaling}, {self.directions}"
            )

    @property
    def form(self) -> Codes:  # type: ignore[override]  # an attribute in strategies with a single coding
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
            "told": {},  # the round up to which each client knows the ledger
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
        replica.show(client.vector)

    def _replica(self, client: Client) -> Replica:
        return client.once(self, lambda: Replica(Meaning(self.manifest(client.initial)), client.first))

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
        if client.local:  # never sent, and so may be trained as usual
            client.fit(round, client.local)
        projected = (up - down) / (2 * self.epsilon)
        if self.rounding == "stochastic":
            generator = seeds.generator(client.seed, "rounding", round, client.id)
            threshold = torch.rand(self.probes, generator=generator, dtype=torch.float64).numpy()
            coding = self.CODINGS[self.coding]
            projected = coding.decode(coding.encode(projected, threshold))  # has one code, whatever the rounding
        metrics = {"examples": float(len(client.train_examples))}
        if bool((loss := ((up + down) / 2).nanmean()).isfinite()):
            metrics["train_loss"] = float(loss)
        return Payload({"update": {"projected": projected}}, metrics)

    def _probe(self, client: Client, round: int) -> Tensor:
        """Return the losses up and down each direction, ``[probes, 2]``; each message has its own batch."""
        replica, messages, losses = self._replica(client), -(-self.probes // PROBES), []
        with torch.no_grad():
            for message, batch in enumerate(islice(client.batches(round, epochs=messages), messages)):
                origin = replica.meaning.origin(client.id, round, message)
                probes = min(PROBES, self.probes - PROBES * message)
                loss, together = partial(client.loss, batch), partial(client.losses, batch)
                losses.append(replica.probe(client.vector, origin, probes, self.epsilon, client.size, loss, together))
        return torch.cat(losses)

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        return {"codes": {"codes": self.CODINGS[self.coding].encode(torch.zeros(self.probes))}}

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        said = {client: self.said(upload) for client, upload in sorted(uploads.items())}
        # A client that was heard has received everything committed before.
        told = state["told"] | dict.fromkeys(said, self._ledger(state).round)
        after = self.extended(state, Commit(round, self.step(round, len(said)), said))
        return after | {"told": dict(sorted(told.items()))}

    def said(self, upload: Payload) -> bytes:
        return upload.tensors["codes"]["codes"].numpy().tobytes()

    def step(self, round: int, peers: int) -> int:
        """Return the factor on each integer of a round in which `peers` take part."""
        return self.steps.at(round, self.probes * peers)

    def extended(self, state: State, commit: Commit) -> State:
        """Return the memory with another commit in its ledger."""
        meaning = Meaning.of(state["manifest"])
        sums = Sums(state["sums"].clone(), state["bound"])
        sums.add(meaning.directions, meaning.entries(commit))
        vector = torch.empty_like(state["initial"])
        settle(vector, state["initial"], sums.values, meaning.manifest.fraction)
        return state | {
            "params": state["params"] | meaning.manifest.parameters(vector),
            "sums": sums.values,
            "bound": sums.bound,
            "ledger": self._ledger(state).extended(commit).trimmed(sums.values.nbytes).save(),
        }

    def _ledger(self, state: State) -> Transcript:
        found = kept(state)
        assert found is not None
        return found[1]
