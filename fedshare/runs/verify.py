"""Whether a run is intact, and whether two runs are the same."""

from collections.abc import Collection, Iterator
from itertools import zip_longest
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedshare.errors import UserError
from fedshare.network import LATE
from fedshare.rounds import chain
from fedshare.rounds.chain import Link
from fedshare.runs import checkpoint
from fedshare.runs.folder import RunFolder
from fedshare.state import digests
from fedshare.tensors import fingerprint


def records_flaw(run: RunFolder) -> str | None:
    """Return what in the lines of `run` contradicts its seal or digests; lines cut short by a kill do not."""
    return run.seal_flaw() or _chain_flaw(run, run.links())


def unwritten(run: RunFolder, links: list[Link]) -> list[str]:
    """Return what is sealed but missing, rounds or a config: a single item may be due to a kill during writing."""
    if not run.seals.exists():
        return []
    lost = [f"round {seal.round}" for seal in run.seals.read() if seal.round and seal.round > len(links)]
    return lost if run.seals.holds(run.config.read_bytes()) else [*lost, "the newest config"]


def self_check(run: RunFolder) -> str | None:
    """Return what in `run` contradicts its records: the first round, participant and tensor; None if nothing does."""
    links = run.links()
    if wrong := run.seal_flaw():
        return wrong
    if wrong := _chain_flaw(run, links) or _contents_flaw(run, links):
        return f"{wrong} (differs from its recorded digest)"
    if len(lost := unwritten(run, links)) > 1:
        return f"{lost[0]} to {lost[-1]} are sealed and missing: removed, or a resume was killed as it went back"
    return None


def _chain_flaw(run: RunFolder, links: list[Link]) -> str | None:
    previous = chain.START
    for position, link in enumerate(links, 1):
        if link.round != position or not link.follows(previous):
            return f"round {position}: the line in {run.links_file.name} does not follow from the lines before"
        previous = link.digest
    logged = [(row["round"], row.get("digest")) for row in run.rows()]
    for link in links:
        if logged[link.round - 1 : link.round] != [(link.round, link.digest)]:
            return f"round {link.round}: {run.metrics.name} has no line of this round with its digest"
    return None


def _contents_flaw(run: RunFolder, links: list[Link]) -> str | None:
    for round in sorted(checkpoint.rounds(run.checkpoints)):
        if wrong := _check_checkpoint(run, links, round):
            return f"round {round}: {wrong}"
    if wrong := _check_ledger(run, links) or initial_flaw(run):
        return wrong
    if run.model.exists() and links:
        # If nothing is shared, the only path is "params" itself.
        params = {path: digest for path, digest in links[-1].server.items() if path.split("/")[0] == "params"}
        try:
            found = digests({"params": load_file(run.model)})
        except SafetensorError as error:
            return f"{run.model.name} is damaged: {error}"
        if path := next(chain.differences(params, found), None):
            return f"{run.model.name}: {path}"
    return None


def _check_ledger(run: RunFolder, links: list[Link]) -> str | None:
    if not run.ledger.exists():
        told = next((link.round for link in links if "ledger/head" in link.server), None)
        return f"round {told}: {run.ledger.path.name} is missing" if told else None
    try:
        contents = run.ledger.read()
    except UserError as error:
        return str(error).removeprefix(f"{run.path}/")
    if not any("ledger/head" in link.server for link in links):
        return None  # of a peer that had it complete in the end only; `fedshare replay` compares its model
    heads = {place.commit.round: place.head for place in contents.places}
    head = contents.manifest.head
    for link in links:
        head = heads.pop(link.round, head)
        if link.server.get("ledger/head") != digests({"head": head})["head"]:
            return f"round {link.round}: {run.ledger.path.name} leads to another head"
    return f"round {min(heads)}: {run.ledger.path.name} has a commit, and there was no such round" if heads else None


def initial_flaw(run: RunFolder) -> str | None:
    """Return what is wrong with the stored initial model of `run`; None if nothing is."""
    if (recorded := run.made_with().get("initial")) is None:  # runs of fedshare 0.1 store none
        return None
    if not run.initial.exists():
        return f"{run.initial.name} is missing"
    try:
        same = fingerprint(load_file(run.initial)) == recorded
    except SafetensorError as error:
        return f"{run.initial.name} is damaged: {error}"
    return None if same else f"{run.initial.name} is not the model that the run began with"


def _check_checkpoint(run: RunFolder, links: list[Link], round: int) -> str | None:
    if round > len(links):
        return f"{run.links_file.name} has no line for this checkpoint"
    memories = checkpoint.read_damaged(run.checkpoints, round)
    if memories is None:
        return "its checkpoint cannot be read"
    try:
        loaded = checkpoint.load(run.checkpoints, round)
    except UserError as error:
        return _contradiction(links[:round], *memories) or str(error)
    if wrong := _contradiction(links[:round], *memories, remote=loaded.remote):
        return wrong
    return None if loaded.digest == links[round - 1].digest else "its checkpoint is of another run"


def _contradiction(
    links: list[Link],
    server: dict[str, Any],
    clients: dict[int, dict[str, Any]],
    remote: bool = False,
) -> str | None:
    """Return the first leaf of these memories whose digest differs from the recorded one."""
    recorded: dict[str, chain.Leaves] = {}
    for link in links:
        # Of memories that clients keep themselves, only the round is known here.
        recorded |= {
            c: digests({"round": link.round if leaves else 0}) if remote else leaves
            for c, leaves in link.memories.items()
        }
    found = {str(client): digests(state) for client, state in clients.items()}
    if remote:  # the file also holds evidence against clients, which no digest covers
        found = {str(c): digests({"round": state.get("round")}) for c, state in clients.items() if str(c) in recorded}
    for client in sorted(recorded.keys() | found.keys(), key=int):
        if path := next(chain.differences(recorded.get(client, {}), found.get(client, {})), None):
            return f"client {client}: {path}"
    path = next(chain.differences(links[-1].server, digests(server)), None)
    return f"server: {path}" if path else None


def verify(a: RunFolder, b: RunFolder | None = None, *, harmless: Collection[str] = ()) -> tuple[bool, str]:
    """Return whether two runs are equal to the bit, or one run is intact, and the sentence that reports it.

    `harmless` config keys are never named as the reason why two runs differ.
    """
    for run in [a, b] if b else [a]:
        if wrong := self_check(run):
            return False, f"{run.path}: {wrong}"
    mine = a.links()
    if not mine:
        return False, f"{a.path}: no round is recorded"
    if b is None:
        kept = checkpoint.rounds(a.checkpoints)
        agree = "metrics and checkpoints agree" if kept else "metrics agree"
        whole = f"whole: {len(mine)} rounds, {agree} with digest {mine[-1].digest}"
        return True, f"{whole}{_unproven(a, mine)}{'' if kept else '; no checkpoints'}"
    others = b.links()
    models = {run.made_with().get("model") for run in (a, b)} - {None}
    if where := chain.first_difference(mine, others):
        began = "; so do the models that they began with" if len(models) > 1 else ""
        why = f"{began}{late(a) or late(b)}{_config_difference(a, b, harmless)}"
        return False, f"{_engines(a, b)}differ first in {where}{why}"
    if len(models) > 1:  # in frozen parameters, which no round's digest covers
        return False, f"differ in the models that they began with{_config_difference(a, b, harmless)}"
    if len(mine) != len(others):
        both = min(len(mine), len(others))
        return False, f"equal up to round {both}; {a.path} has {len(mine)}, {b.path} has {len(others)}"
    return True, f"equal: {len(mine)} rounds, digest {mine[-1].digest}"


def _unproven(run: RunFolder, links: list[Link]) -> str:
    """Return what the records of an intact run leave unproven."""
    if not run.seals.exists():
        return "; config and rows may be others, for it has no seal: made before there were seals, or it was removed"
    if lost := unwritten(run, links):
        return f"; {lost[0]} is sealed and missing: a kill cut its writing short, or it was removed"
    return ""


def late(run: RunFolder) -> str:
    """Return which round was closed without late clients: chance, which another run need not repeat."""
    late = [row["round"] for row in run.rows() if any(why.startswith(LATE) for why in row.get("dropped", {}).values())]
    return f"; {run.path} closed round {late[0]} without who was late (quorum)" if late else ""


def _engines(a: RunFolder, b: RunFolder) -> str:
    """Return that two runs had different engines, which compute different last bits."""
    first, second = (
        next((line for line in run.config.read_text().splitlines() if line.startswith("engine: ")), "engine: plain")
        for run in (a, b)
    )
    return "" if first == second else f"other engines ({first} | {second}), so other bits: "


def _config_difference(a: RunFolder, b: RunFolder, harmless: Collection[str]) -> str:
    """Return the first lines that differ between two configs and may explain why the runs differ."""
    for left, right in zip_longest(_lines(a, harmless), _lines(b, harmless), fillvalue="nothing"):
        if left != right:
            return f"; so do their configs: {left} | {right}"
    return ""


def _lines(run: RunFolder, without: Collection[str]) -> Iterator[str]:
    """Yield the lines of a run's config, except the keys `without` and their contents."""
    kept = True
    for line in run.config.read_text().splitlines():
        if not line.startswith((" ", "-")):
            kept = line.partition(":")[0] not in without
        if kept:
            yield line.strip()
