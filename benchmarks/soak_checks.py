"""What must hold of a ledger that peers share, whatever happened to them on the way."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fedshare.errors import UserError
from fedshare.identity.signing import SIGNATURE
from fedshare.ledger.entries import Entries
from fedshare.ledger.meaning import Meaning
from fedshare.peers.applied import applied
from fedshare.runs import RunFolder, checkpoint
from fedshare.state import State

Step = Callable[[int], int]
Ledger = dict[tuple[int, int], bytes]  # by round and peer, what the peer said


def on_disk(run: Path) -> State | None:
    """The memory of a peer in its newest checkpoint; None if there is none yet, or it is just being replaced."""
    with suppress(UserError, OSError):
        if found := checkpoint.latest(run / "checkpoints", lambda line: None):
            return found.server
    return None


def ledger_of(state: State) -> Ledger:
    """The entries that a memory holds, without signatures."""
    entries = entries_in(state)
    names = entries.names().tolist()
    return {divmod(name, entries.peers): entries.code(name) for name in names}


def entries_in(state: State) -> Entries:
    return Entries(state["flood"]["known"].numpy(), state["flood"]["codes"].numpy(), SIGNATURE)


def flaws(runs: Sequence[Path], acknowledged: Ledger, step: Step) -> list[str]:
    """Lines that say what is wrong at the end of a run: nothing if all peers have the same of everything, once.

    `acknowledged`: entries that some peer had on disk at some time. `step`: the factor on the integers of a round.
    """
    found, models, ledgers = list[str](), set[str](), list[Ledger]()
    for peer, run in enumerate(runs):
        found += _alone(peer, run)
        models.add(_digest(run / "model.safetensors"))
        state = on_disk(run)
        if state is None:
            found.append(f"peer {peer} has no checkpoint")
            continue
        ledgers.append(ledger_of(state))
        if not torch.equal(replayed(state, step), state["flood"]["sums"]):
            found.append(f"peer {peer}: its sums are not those of its entries, each taken once")
    if len(models) > 1:
        found.append(f"{len(models)} different models among {len(runs)} peers")
    if any(ledger != ledgers[0] for ledger in ledgers):
        found.append("the sets of entries differ")
    for peer, ledger in enumerate(ledgers):
        if lost := [key for key, codes in acknowledged.items() if ledger.get(key) != codes]:
            found.append(f"peer {peer} lacks {len(lost)} of {len(acknowledged)} acknowledged entries, {lost[:3]} first")
    return found


def flaws_by_relay(runs: Sequence[Path], followed: bytes) -> list[str]:
    """The same of peers that have one log. `followed`: the longest ledger that any of them had on disk at some time."""
    found = [line for peer, run in enumerate(runs) for line in _alone(peer, run)]
    ledgers = [(run / "ledger").read_bytes() for run in runs]
    if len({*ledgers}) > 1:
        found.append("the ledgers differ")
    if not ledgers[0].startswith(followed):
        found.append(f"the ledger does not begin with the {len(followed)} bytes that a peer had of it")
    if len(models := {_digest(run / "model.safetensors") for run in runs}) > 1:
        found.append(f"{len(models)} different models among {len(runs)} peers")
    return found


def _alone(peer: int, run: Path) -> list[str]:
    """What is wrong with one run by itself."""
    found = [f"peer {peer} holds a proof that somebody equivocated: {path}" for path in (run / "proofs").glob("*")]
    rows = [row["round"] for row in RunFolder(run).rows()]
    if rows != list(range(1, len(rows) + 1)):
        found.append(f"peer {peer}: its rows are not of rounds 1 to {len(rows)}, one of each")
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def replayed(state: State, step: Step) -> torch.Tensor:
    """The sums of all entries, made anew."""
    entries, meaning = entries_in(state), Meaning.of(state["manifest"])
    sums = torch.zeros((1, len(state["initial"])), dtype=torch.int64)
    nothing = Entries.empty(entries.peers, entries.codes.shape[2]).counted
    applied(meaning, step, {0: entries}, {0: nothing}, sums)
    return sums[0]
