"""FedCAC: non-critical parameters are averaged over all clients, critical ones only over similar clients.

Wu et al., "Bold but Cautious: Unlocking the Potential of Personalized Federated Learning through Cautiously Aggressive
Collaboration", ICCV 2023, arXiv 2309.11103. Parameters that are critical to a client are averaged only with clients
whose critical parameters overlap enough with its own, and the required overlap rises with the rounds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedshare.client import Client
from fedshare.errors import UserError
from fedshare.forms import masks
from fedshare.payload import Payload
from fedshare.rules.mixing import mix, overlay
from fedshare.state import State
from fedshare.strategy import Purpose, Strategy
from fedshare.tensors import Tensors, mean


@dataclass(frozen=True)
class FedCAC(Strategy):
    """The server stores each client's mask and the values there; the rest is the global model of its last round.

    A round does not change the models of absent clients. A client that never took part has the global model. Buffers
    are never critical.
    """

    tau: float = 0.5  # the share of critical parameters in each tensor
    beta: float = 100.0  # the round in which only the most similar pair still collaborates, and after which none does
    remember: bool = False  # whether absent clients collaborate with the last model and mask that they sent
    refresh: bool = False  # whether absent clients get the newest global model outside their critical parameters
    local_buffers: bool = True  # whether running statistics stay on the client; else they are averaged over all clients

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= 1:
            raise UserError(f"tau={self.tau}: must be from 0 to 1")
        if not self.beta > 0:
            raise UserError(f"beta={self.beta}: must be above 0; inf: the threshold stays at the average overlap")

    reports: ClassVar[dict[str, str]] = {
        "overlap": "what each two clients have in common of their critical parameters, from 0 to 1",
        "overlap_mean": "the average over all pairs",
        "overlap_max": "the largest of a pair",
        "threshold": "the least overlap of two clients that collaborate",
        "collaborators": "with whom each client collaborated",
    }

    def init(self, params: Tensors, clients: int) -> State:
        return {"params": params, "round": 0, "former": {}, "clients": {}, "sent": {}}

    def download(self, state: State, client_id: int, purpose: Purpose) -> Payload | None:
        params = state["params"]
        if own := state["clients"].get(client_id):
            params = overlay(state["former"].get(own["round"], params), own["values"], own["critical"])
        return Payload({"params": params})

    def apply(self, client: Client, download: Payload) -> None:
        client.load(download.tensors["params"] | client.state.get("buffers", {}))

    def train(self, client: Client, round: int, download: Payload) -> Payload:
        before = client.params()
        metrics = client.fit(round)
        after = client.params()
        # The server drops a diverged fit; statistics spoilt by it would spoil every later fit.
        if self.local_buffers and all(bool(tensor.isfinite().all()) for tensor in after.values()):
            client.state["buffers"] = {name: t.clone() for name, t in after.items() if name in client.buffers}
        critical = {
            name: masks.pack(critical_to(before[name], after[name], 0 if name in client.buffers else self.tau))
            for name in after
        }
        return Payload({"params": after, "critical": critical}, metrics)

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        uploads = dict(sorted(uploads.items()))
        models = {client: upload.tensors["params"] for client, upload in uploads.items()}
        average = mean(list(models.values()), [upload.metrics["examples"] for upload in uploads.values()])

        # Bits beyond the last coordinate have no meaning, but a client may have set them.
        sent = {
            client: {"params": models[client], "critical": clean(upload.tensors["critical"], models[client])}
            for client, upload in uploads.items()
        }
        everyone = dict(sorted((state["sent"] | sent).items()))
        shared = overlaps([tensors["critical"] for tensors in everyone.values()])
        collaborate = collaborators(shared, round, self.beta)
        present = [position for position, client in enumerate(everyone) if client in uploads]

        sets = (collaborate | torch.eye(len(everyone), dtype=torch.bool))[present]  # i itself is in its own average
        critical = [sent[client]["critical"] for client in uploads]
        values = mix([tensors["params"] for tensors in everyone.values()], sets, critical)
        customised = {
            client: {"round": round, "critical": mask, "values": own}
            for client, mask, own in zip(uploads, critical, values, strict=True)
        }
        clients = dict(sorted((state["clients"] | customised).items()))
        held = set() if self.refresh else {own["round"] for own in clients.values()} - {round}
        former = state["former"] | {state["round"]: state["params"]}
        names = list(everyone)
        return {
            "params": average,
            "round": round,
            "former": {round: params for round, params in former.items() if round in held},
            "clients": clients,
            "sent": everyone if self.remember else {},
            "overlap": {"clients": names, "shared": shared},
            "collaborators": {
                names[row]: [names[column] for column in collaborate[row].nonzero().flatten().tolist()]
                for row in present
            },
        }

    def expects(self, state: State, client_id: int) -> dict[str, Tensors]:
        params = state["params"]
        bits = {name: torch.empty(masks.packed_size(t.numel()), dtype=torch.uint8) for name, t in params.items()}
        return {"params": params, "critical": bits}

    def report(self, state: State) -> dict[str, Any]:
        """The overlap of each pair of clients, and with whom each has collaborated."""
        if "overlap" not in state:
            return {}
        shared = state["overlap"]["shared"]
        critical = max(1, int(shared.diag().median()))  # the same for every client with an honest mask
        found: dict[str, Any] = {
            "overlap": {
                "clients": state["overlap"]["clients"],
                "values": [[round(count / critical, 4) for count in row] for row in shared.tolist()],
            },
            "collaborators": {str(client): others for client, others in state["collaborators"].items()},
        }
        if len(shared) > 1:
            average, most = spread(shared)
            least = threshold(shared, state["round"], self.beta)
            found |= {"overlap_mean": float(average / critical), "overlap_max": most / critical}
            # Above 1 no pair reaches it, and a beta close to 0 makes it overflow a float.
            found |= {"threshold": float(min(least / critical, Fraction(2)))}
        return found


def critical_to(before: Tensor, after: Tensor, tau: float) -> Tensor:
    """Return the mask of the ``floor(tau * size)`` entries with the largest sensitivity, |change * value|.

    This is a first-order estimate of the change of the loss if the entry were 0, with the change over the round instead
    of the gradient. In float64 the product of two float32 is exact and does not underflow.
    """
    sensitivity = ((after.double() - before.double()) * after.double()).abs()
    return masks.top(sensitivity, masks.count(tau, after.numel()))


def clean(critical: Tensors, params: Tensors) -> Tensors:
    """Copy packed masks without bits beyond the last coordinate; a received mask may keep a whole message in memory."""
    return {name: masks.pack(masks.unpack(critical[name], tensor.numel())) for name, tensor in params.items()}


def overlaps(critical: list[Mapping[str, Tensor]]) -> Tensor:
    """Return the number of critical parameters that each pair shares, ``[n, n]``: the paper's overlap, times k."""
    flat = [torch.cat([torch.empty(0, dtype=torch.uint8), *(mask[name] for name in critical[0])]) for mask in critical]
    return masks.intersections(flat)


def spread(shared: Tensor) -> tuple[Fraction, int]:
    """Return the average and the largest overlap of different clients."""
    n = len(shared)
    pairs = shared[~torch.eye(n, dtype=torch.bool)]
    return Fraction(int(pairs.sum()), n * (n - 1)), int(pairs.max())


def threshold(shared: Tensor, round: int, beta: float) -> Fraction:
    """Return the overlap required for collaboration: it rises from the average to the largest, reached in round beta.

    Exact, because if all overlaps are equal, rounding would decide whether all pairs collaborate or none.
    """
    average, most = spread(shared)
    progress = 0 if math.isinf(beta) else round / Fraction(str(beta))
    return average + progress * (most - average)


def collaborators(shared: Tensor, round: int, beta: float) -> Tensor:
    """Return which clients collaborate, ``[n, n]``, with a diagonal of False."""
    if len(shared) < 2:
        return torch.zeros_like(shared, dtype=torch.bool)
    # A beta close to 0 gives a threshold beyond int64; above the largest overlap all are equivalent.
    enough = shared >= min(math.ceil(threshold(shared, round, beta)), int(shared.max()) + 1)
    return enough & ~torch.eye(len(shared), dtype=torch.bool)
