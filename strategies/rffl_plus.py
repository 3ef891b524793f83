"""RFFL+: RFFL with a reference independent of reputation, one vote per group of near-duplicates, and tested removal.

Our own answer to the faults of RFFL (`fedshare.strategies.rffl`) with heterogeneous or colluding clients. There,
reputations are measured against the reputation-weighted average, so that reputation breeds reputation; identical
updates count as often as they are sent; and an honest client with unusual data is removed like a free-rider.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.forms import sparse
from fedshare.payload import Payload
from fedshare.rules.matrix import products
from fedshare.state import State
from fedshare.strategies.reputation import OWN, Reputation, outstanding, reward, shares
from fedshare.tensors import Tensors, dot, flatten, mean, norm, scale

LEAST_SPREAD = 0.05  # of scores: if clients nearly agree, a small deviation does not make an outlier
SUSPICIOUS = 0.9  # the assumed rate of bad scores of a client to be removed


@dataclass(frozen=True)
class RFFLPlus(Reputation):
    """Uploads are unscaled updates; the server clips them to their median norm.

    A client's *score* is the cosine of its update with the sum of the others', each group of near-duplicates counting
    once; it is 0 for an update that repeats what the client was sent. Reputation is the moving average of scores, and
    determines weight and reward, as in RFFL.

    A score is *bad* if it is near zero or below and far below the others'. Removal is a sequential test of "an honest
    client has a bad score in at most the share `tolerance` of its rounds, whatever came before" (a likelihood ratio,
    bounded by Ville's inequality): of clients for which that is true, at most the share `risk` is ever put on
    probation. A client on probation is asked for updates, which do not count, and receives nothing. The test starts
    anew: if the client fails again, it is removed; otherwise it returns after `probation` rounds in which it took part.
    """

    warmup: int = 3  # the first round in which a score may be bad
    own: str = "cgsv"  # how a client's own update is treated: paper, code or cgsv
    duplicate: float = 0.99  # updates with a higher cosine share a vote
    spread: float = 4.0  # a score is far below the others' if it is this many median deviations below their median
    tolerance: float = 0.25  # the share of rounds in which an honest client may score badly
    risk: float = 0.05  # the share of honest clients that may be put on probation in the whole run
    probation: int = 10  # rounds in which a client takes part

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("duplicate", "tolerance", "risk"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise UserError(f"{name}={value}: must be above 0 and below 1")
        if self.tolerance >= SUSPICIOUS:
            raise UserError(f"tolerance={self.tolerance}: must be below {SUSPICIOUS}")
        if not self.spread > 0:
            raise UserError(f"spread={self.spread}: must be above 0")
        for name in ("warmup", "probation"):
            if (rounds := getattr(self, name)) < 1:
                raise UserError(f"{name}={rounds}: must be at least 1")
        if self.own not in OWN:
            raise UserError(f"own={self.own}: must be {', '.join(OWN)}")

    reports: ClassVar[dict[str, str]] = Reputation.reports | {"probation": "rounds of probation that are left"}

    def init(self, params: Tensors, clients: int) -> State:
        return super().init(params, clients) | {"evidence": {}, "probation": {}}

    def kept(self, weight: float) -> float:
        return OWN[self.own](weight)

    def scaled(self, update: Tensors) -> Tensors:
        return update

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        uploads = {client: uploads[client] for client in sorted(uploads) if client not in state["removed"]}
        if not uploads:
            return state
        sent = {client: upload.tensors["update"] for client, upload in uploads.items()}
        voters = [client for client in uploads if client not in state["probation"]]
        if not voters:
            return state
        cuts = clips(sent)
        updates = {client: scale(update, cuts[client]) for client, update in sent.items()}

        echoes = {client for client, update in updates.items() if self.echoes(update, state, client)}
        gram = inner([*updates.values()])
        alike = self.alike(gram, [client in voters for client in updates])
        counted = torch.tensor([client in voters and client not in echoes for client in updates])
        votes = counted / (alike & counted).sum(dim=1).clamp(min=1).double()
        score = dict(zip(updates, scores(gram, votes, alike), strict=True)) | dict.fromkeys(echoes, 0.0)

        entry = {client: max(0.0, s) for client, s in score.items()}
        reputation = state["reputation"] | {
            client: self.alpha * state["reputation"].get(client, entry[client]) + (1 - self.alpha) * entry[client]
            for client in updates
        }
        standing = {client: vote * reputation[client] for client, vote in zip(updates, votes.tolist(), strict=True)}
        weights = shares({client: standing[client] for client in voters})
        average = mean([updates[client] for client in weights], list(weights.values()))

        bad = self.outliers(score) if round >= self.warmup else set()
        evidence, probation, removed = self.tried(state, round, list(updates), bad)
        reputation = {client: r for client, r in sorted(reputation.items()) if client not in removed}
        trusted = [client for client in voters if client not in probation and client not in removed]
        best = max((reputation[client] for client in trusted), default=0.0)
        news = {
            client: {
                "round": round,
                "weight": weights.get(client, 0.0) * cuts[client],  # relative to the upload, not to its clipped version
                # If no client has any reputation, all get everything.
                "share": 0.0 if client not in trusted else reputation[client] / best if best else 1.0,
            }
            for client in updates
            if client not in removed
        }
        after = {"round": round, "reputation": reputation, "weights": weights, "removed": removed}
        after |= {"evidence": evidence, "probation": probation}
        return after | outstanding(state, round, average, news, removed)

    def echoes(self, update: Tensors, state: State, client: int) -> bool:
        """Whether the update repeats what the client was sent for this round."""
        earned = state["earned"].get(client)
        if earned is None or not earned["share"]:
            return False
        sent = sparse.decode(reward(state["updates"][earned["round"]], earned["share"]), update)
        length = math.sqrt(dot(sent, sent) * dot(update, update))
        return length > 0 and dot(sent, update) > self.duplicate * length

    def alike(self, gram: Tensor, voters: list[bool]) -> Tensor:
        """Return which clients are in one group of near-duplicates, ``[n, n]``. If most voters are in one, honest
        clients simply agree, and each stands for itself."""
        likeness = cosines(gram)
        near = (likeness > self.duplicate).fill_diagonal_(True)
        while not torch.equal(wider := (near.double() @ near.double()) > 0, near):
            near = wider
        voting = torch.tensor(voters)
        most = 2 * (near & voting).sum(dim=1) > voting.sum()
        near[most & (near.sum(dim=1) > 1)] = False
        return near.fill_diagonal_(True)

    def outliers(self, score: dict[int, float]) -> set[int]:
        """Return the clients that agree with no other client while the others agree."""
        values = torch.tensor(list(score.values()), dtype=torch.float64)
        middle = values.median()
        deviation = max(float((values - middle).abs().median()), LEAST_SPREAD)
        least = min(float(middle) - self.spread * deviation, LEAST_SPREAD)
        return {client for client, value in score.items() if value < least}

    def tried(
        self, state: State, round: int, clients: list[int], bad: set[int]
    ) -> tuple[dict[int, float], dict[int, int], dict[int, int]]:
        """Return the evidence (log likelihood ratios), the remaining rounds of probation, and the rounds of removal."""
        evidence, probation, removed = (dict(state[name]) for name in ("evidence", "probation", "removed"))
        if round >= self.warmup:
            for client in clients:
                much = SUSPICIOUS / self.tolerance if client in bad else (1 - SUSPICIOUS) / (1 - self.tolerance)
                evidence[client] = evidence.get(client, 0.0) + math.log(much)
                failed = evidence[client] >= -math.log(self.risk)
                if client not in probation:
                    if failed:
                        probation[client], evidence[client] = self.probation, 0.0
                elif failed:
                    del probation[client], evidence[client]
                    removed[client] = round
                elif probation[client] > 1:
                    probation[client] -= 1
                else:
                    del probation[client]
                    evidence[client] = 0.0
        return dict(sorted(evidence.items())), dict(sorted(probation.items())), dict(sorted(removed.items()))

    def report(self, state: State) -> dict[str, Any]:
        """As RFFL's, plus the remaining rounds of probation."""
        probation = {str(client): left for client, left in state["probation"].items()}
        return super().report(state) | {"probation": probation}


def clips(updates: dict[int, Tensors]) -> dict[int, float]:
    """Return the factors that clip updates to the median norm of the non-zero ones; 1 for shorter updates."""
    length = {client: norm(update) for client, update in updates.items()}
    known = torch.tensor([value for value in length.values() if value > 0], dtype=torch.float64)
    most = float(known.median()) if len(known) else 0.0
    return {client: most / value if value > most else 1.0 for client, value in length.items()}


def inner(updates: list[Tensors]) -> Tensor:
    """Return the inner products, ``[n, n]``."""
    rows = torch.stack([flatten(update) for update in updates])
    return products(rows, rows)


def cosines(gram: Tensor) -> Tensor:
    """Return the cosines, ``[n, n]``; 0 with a zero update."""
    length = gram.diagonal().sqrt()
    return (gram / length.outer(length)).nan_to_num(0)


def scores(gram: Tensor, votes: Tensor, alike: Tensor) -> list[float]:
    """Return each client's cosine with the sum of the others by votes, without its near-duplicates; 0 if undefined."""
    found = []
    for row, near in enumerate(alike):
        others = votes * ~near
        norm = math.sqrt(max(float(others @ gram @ others) * float(gram[row, row]), 0.0))
        found.append(max(-1.0, min(1.0, float(gram[row] @ others) / norm)) if norm > 0 else 0.0)
    return found
