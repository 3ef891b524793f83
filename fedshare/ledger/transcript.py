"""A participant's copy of a ledger: a snapshot of the sums, if any, and the commits after it.

Both carry the same information, so the smaller one is kept, and sent to participants that missed rounds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedshare.ledger.commit import Commit, Manifest, bodies, framed, unframed
from fedshare.ledger.meaning import Meaning
from fedshare.payload import Payload
from fedshare.state import State

_NONE = np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class Transcript:
    round: int  # of the last commit; 0 before the first
    head: str  # the ledger's head at that round
    since: int = 0  # the round of the snapshot
    sums: Tensor | None = None  # the snapshot; None: all zero
    commits: bytes = b""  # after the snapshot, framed
    index: NDArray[np.int64] = field(default_factory=lambda: _NONE)  # ``[n, 2]``: the round and the end of each commit

    @classmethod
    def begin(cls, manifest: Manifest) -> "Transcript":
        return cls(0, manifest.head)

    @classmethod
    def restore(cls, state: State, manifest: Manifest) -> "Transcript":
        """Return the saved transcript, or the beginning if nothing was saved."""
        if not state:
            return cls.begin(manifest)
        return cls(**state | {"commits": _bytes(state["commits"]), "index": state["index"].numpy()})

    def save(self) -> State:
        return vars(self) | {"commits": _tensor(self.commits), "index": torch.from_numpy(self.index)}

    @property
    def last(self) -> Commit:
        """The commit of the current round; there must be one after the snapshot."""
        start = int(self.index[-2, 1]) if len(self.index) > 1 else 0
        return next(commit for _, commit in unframed(self.commits[start:]))

    def extended(self, *commits: Commit) -> "Transcript":
        if not commits:
            return self
        head, data, index = self.head, [self.commits], list[tuple[int, int]]()
        end = len(self.commits)
        for commit in commits:
            data.append(framed(commit))
            end += len(data[-1])
            head = commit.head(head)
            index.append((commit.round, end))
        joined = np.concatenate([self.index, np.array(index, dtype=np.int64)])
        return replace(self, round=commits[-1].round, head=head, commits=b"".join(data), index=joined)

    def snapshot(self, sums: Tensor) -> "Transcript":
        """Return a transcript with `sums`, those at its round, instead of commits."""
        return Transcript(self.round, self.head, self.round, sums)

    def trimmed(self, most: int) -> "Transcript":
        """Return only the last commits, at most `most` bytes but at least one: the server sends these, not the sums."""
        over = len(self.commits) - most
        if over <= 0 or len(self.index) < 2:
            return self
        count = min(int(np.searchsorted(self.index[:, 1], over)) + 1, len(self.index) - 1)
        since, end = map(int, self.index[count - 1])
        index = self.index[count:] - np.array([0, end])
        return replace(self, since=since, sums=None, commits=self.commits[end:], index=index)

    def after(self, round: int) -> bytes:
        """Return the commits after `round`, framed; `round` must not be before `since`."""
        known = int(np.searchsorted(self.index[:, 0], round, side="right"))
        return self.commits[int(self.index[known - 1, 1]) if known else 0 :]

    def entries(self) -> Iterator[Commit]:
        """Yield the commits after the snapshot."""
        return (commit for _, commit in unframed(self.commits))

    def heard(self, download: Payload) -> "tuple[Transcript, dict[str, list[Commit]]]":
        """Return the transcript extended by `download`, and for each head on the way the commits that follow it.

        Known commits are skipped. Raises ValueError if there is a gap.
        """
        told = download.tensors["ledger"]
        head = _bytes(told["head"]).hex()
        if "sums" in told:
            return Transcript(int(download.metrics["round"]), head).snapshot(told["sums"]), {head: []}
        new = [commit for _, commit in unframed(_bytes(told["commits"])) if commit.round > self.round]
        heads = [self.head]
        for commit in new:
            heads.append(commit.head(heads[-1]))
        if heads[-1] != head:
            raise ValueError(f"the ledger of round {self.round} does not lead to the head {head[:12]} that was sent")
        return self.extended(*new), {here: new[position:] for position, here in enumerate(heads)}


def kept(state: State) -> tuple[Manifest, Transcript] | None:
    """Return the model's ledger, if a server's memory holds one: its ``manifest`` and ``ledger``."""
    if "ledger" not in state:
        return None
    manifest = Meaning.of(state["manifest"]).manifest
    return manifest, Transcript.restore(state["ledger"], manifest)


def telling(transcript: Transcript, sums: Tensor, round: int) -> Payload:
    """Return what a participant at `round` needs: the commits after it, or the sums if these are smaller."""
    head = bytes.fromhex(transcript.head)
    lacking = transcript.after(round) if round >= transcript.since else None
    if lacking is None or len(lacking) > sums.nbytes:
        return telling_sums(head, sums, transcript.round)
    return Payload({"ledger": {"commits": _tensor(lacking), "head": _tensor(head)}})


def telling_sums(head: bytes, sums: Tensor, round: int) -> Payload:
    """Return the sums at `round` for a participant; `head` names the entries that they are the sums of."""
    return Payload({"ledger": {"sums": sums, "head": _tensor(head)}}, {"round": round})


def caught_up(downloads: Mapping[int, Payload]) -> dict[str, Any]:
    """Return the part of a row about the clients that had missed rounds of a ledger, from what each client was sent.

    ``caught_up`` says by client whether it was sent ``12 commits`` or a ``snapshot``, the smaller of the two, and
    ``bytes_caught_up`` is the size of these downloads. Empty if nobody had missed any.
    """
    count = cache(lambda commits: sum(1 for _ in bodies(commits)))  # most lack the same
    how = dict[int, str]()
    for client, download in sorted(downloads.items()):
        told = download.tensors.get("ledger", {})
        if "sums" in told:
            how[client] = "snapshot"
        elif "commits" in told and (lacking := count(_bytes(told["commits"]))) > 1:
            how[client] = f"{lacking} commits"
    if not how:
        return {}
    size = sum(downloads[client].nbytes for client in how)
    return {"caught_up": {str(client): what for client, what in how.items()}, "bytes_caught_up": size}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
