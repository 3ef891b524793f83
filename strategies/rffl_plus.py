"""RFFL+: RFFL with a reference that no reputation feeds, one vote for near-duplicates, and a test before any removal.

Our own answer to what RFFL (`fedshare.strategies.rffl`) gets wrong where clients differ or collude. There, the average
by reputation is what reputations are measured against, so that whoever has some gets more; identical updates count as
often as they are sent; and an honest client whose data are unlike the others' is removed as a free-rider is.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedshare import sparse
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.strategies.rffl import RFFL, dot, reward, shares
from fedshare.tensors import Tensors, mean, scale

LEAST_SPREAD = 0.05  # of scores: clients that all but agree are no reason to call the next one an outlier
SUSPICIOUS = 0.9  # how often somebody who does not belong is taken to score badly


@dataclass(frozen=True)
class RFFLPlus(RFFL):
    """Uploads are changes as they are; the server clips them to their median length. `gamma` and `beta` play no part.

    A client's *score* is the cosine of its update with the sum of the others', each group of near-duplicates counting
    once; it is 0 for an update that repeats what the client was sent. Reputation is the moving average of scores, and
    gives weight and reward, as in RFFL.

    A score is *bad* where it is no better than none and far below the others', or for a repetition. Removal is a
    sequential test of "an honest client has a bad score in at most the share `tolerance` of its rounds, whatever came
    before" (a likelihood ratio, which Ville's inequality bounds): of clients for which that is true, at most the share
    `risk` is ever put on probation. There a client is asked for updates, which count for nothing, and gets nothing; it
    is removed if the test, begun anew, fails it again, and is back after `probation` rounds if not.
    """

    warmup: int = 3  # the first round in which a score may be bad
    own: str = "cgsv"  # what becomes of a client's own update: paper, code or cgsv
    duplicate: float = 0.99  # updates whose cosine is above this share a vote
    spread: float = 4.0  # a score is far below the others' from so many median deviations below their median
    tolerance: float = 0.25  # the share of rounds in which an honest client may score badly
    risk: float = 0.05  # the share of honest clients that may be put on probation in the whole run
    probation: int = 10  # rounds

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("duplicate", "tolerance", "risk"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise UserError(f"{name}={value}: must be above 0 and below 1")
        if self.tolerance >= SUSPICIOUS:
            raise UserError(f"tolerance={self.tolerance}: must be below {SUSPICIOUS}")
        if not self.spread > 0:
            raise UserError(f"spread={self.spread}: must be above 0")
        if self.probation < 1:
            raise UserError(f"probation={self.probation}: must be at least 1")

    def init(self, params: Tensors) -> State:
        return super().init(params) | {"evidence": {}, "probation": {}}

    def scaled(self, update: Tensors) -> Tensors:
        return update

    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        uploads = {client: uploads[client] for client in sorted(uploads) if client not in state["removed"]}
        if not uploads:
            return state
        updates = clipped({client: upload.tensors["update"] for client, upload in uploads.items()})
        voters = [client for client in updates if client not in state["probation"]] or list(updates)

        echoes = {client for client, update in updates.items() if self.echoes(update, state, client)}
        likeness = cosines(list(updates.values()))
        votes = self.votes(likeness, [client in voters and client not in echoes for client in updates])
        score = dict(zip(updates, scores(likeness, lengths(updates.values()), votes, self.duplicate), strict=True))
        score |= dict.fromkeys(echoes, 0.0)

        entry = {client: max(0.0, s) for client, s in score.items()}
        reputation = state["reputation"] | {
            client: self.alpha * state["reputation"].get(client, entry[client]) + (1 - self.alpha) * entry[client]
            for client in updates
        }
        standing = {client: vote * reputation[client] for client, vote in zip(updates, votes.tolist(), strict=True)}
        weights = shares({client: standing[client] for client in updates if client in voters})
        average = mean([updates[client] for client in weights], list(weights.values()))

        bad = self.outliers(score) if round >= self.warmup else set()
        evidence, probation, removed = self.tried(state, round, list(updates), bad)
        reputation = {client: r for client, r in sorted(reputation.items()) if client not in removed}
        best = max((r for client, r in reputation.items() if client not in probation), default=0.0) or 1.0
        news = {
            client: {
                "round": round,
                "weight": weights.get(client, 0.0),
                "share": 0.0 if client in probation else min(1.0, reputation[client] / best),
            }
            for client in updates
            if client not in removed
        }
        earned = {client: e for client, e in sorted((state["earned"] | news).items()) if client not in removed}
        held = {e["round"] for e in earned.values()} | {round}
        return {
            "updates": {r: update for r, update in (state["updates"] | {round: average}).items() if r in held},
            "round": round,
            "reputation": reputation,
            "weights": weights,
            "earned": earned,
            "removed": removed,
            "evidence": evidence,
            "probation": probation,
        }

    def echoes(self, update: Tensors, state: State, client: int) -> bool:
        """Whether it is what the client was sent for this round."""
        earned = state["earned"].get(client)
        if earned is None or not earned["share"]:
            return False
        sent = sparse.decode(reward(state["updates"][earned["round"]], earned["share"]), update)
        length = math.sqrt(dot(sent, sent) * dot(update, update))
        return length > 0 and dot(sent, update) > self.duplicate * length

    def votes(self, likeness: Tensor, counted: list[bool]) -> Tensor:
        """One for each group of near-duplicates, shared among its members; none for who is not counted."""
        count = torch.tensor(counted)
        near = (likeness > self.duplicate) & count & count[:, None]
        near.fill_diagonal_(True)
        while not torch.equal(wider := (near.double() @ near.double()) > 0, near):
            near = wider
        return count.double() / near.sum(dim=1)

    def outliers(self, score: dict[int, float]) -> set[int]:
        """Who agrees with nobody, while the others agree."""
        values = torch.tensor(list(score.values()), dtype=torch.float64)
        middle = values.median()
        deviation = max(float((values - middle).abs().median()), LEAST_SPREAD)
        least = min(float(middle) - self.spread * deviation, LEAST_SPREAD)
        return {client for client, value in score.items() if value < least}

    def tried(
        self, state: State, round: int, clients: list[int], bad: set[int]
    ) -> tuple[dict[int, float], dict[int, int], dict[int, int]]:
        """The evidence (log likelihood ratio), who is on probation until which round, who is removed since which."""
        evidence, removed = dict(state["evidence"]), dict(state["removed"])
        probation = {client: end for client, end in state["probation"].items() if end >= round}
        evidence |= dict.fromkeys(state["probation"].keys() - probation.keys(), 0.0)
        if round >= self.warmup:
            for client in clients:
                much = SUSPICIOUS / self.tolerance if client in bad else (1 - SUSPICIOUS) / (1 - self.tolerance)
                evidence[client] = evidence.get(client, 0.0) + math.log(much)
                if evidence[client] < -math.log(self.risk):
                    continue
                if client in probation:
                    del probation[client], evidence[client]
                    removed[client] = round
                else:
                    probation[client], evidence[client] = round + self.probation, 0.0
        return dict(sorted(evidence.items())), dict(sorted(probation.items())), dict(sorted(removed.items()))

    def report(self, state: State) -> dict[str, Any]:
        """As RFFL's, and who is on probation until which round."""
        probation = {str(client): end for client, end in state["probation"].items()}
        return super().report(state) | {"probation": probation}


def lengths(updates: Any) -> Tensor:
    return torch.tensor([math.sqrt(dot(update, update)) for update in updates], dtype=torch.float64)


def clipped(updates: dict[int, Tensors]) -> dict[int, Tensors]:
    """The longer ones shortened to the median length of all that have one."""
    length = dict(zip(updates, lengths(updates.values()).tolist(), strict=True))
    known = torch.tensor([value for value in length.values() if value > 0], dtype=torch.float64)
    most = float(known.median()) if len(known) else 0.0
    return {
        client: scale(update, most / length[client]) if length[client] > most else update
        for client, update in updates.items()
    }


def cosines(updates: list[Tensors]) -> Tensor:
    """``[n, n]``, 0 where one is nothing."""
    rows = torch.stack([torch.cat([t.double().flatten() for t in update.values()]) for update in updates])
    rows = F.normalize(rows, eps=1e-300)
    return rows @ rows.T


def scores(likeness: Tensor, length: Tensor, votes: Tensor, duplicate: float) -> list[float]:
    """Each one's cosine with the sum of the others by votes, its own near-duplicates left out; 0 with nothing."""
    gram = likeness * length * length[:, None]
    found = []
    for row in range(len(votes)):
        others = votes * (likeness[row] <= duplicate)
        others[row] = 0.0
        along = float(gram[row] @ others)
        norm = math.sqrt(max(float(others @ gram @ others), 0.0)) * float(length[row])
        found.append(max(-1.0, min(1.0, along / norm)) if norm > 0 else 0.0)
    return found
