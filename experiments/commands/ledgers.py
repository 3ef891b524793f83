"""`fedshare replay` and `fedshare undo`: rebuild models from a run's config and ledger alone."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig
from torch import nn

from fedshare.errors import UserError
from fedshare.experiments.beginnings import begin, streams, warn, why_another
from fedshare.experiments.commands.export import target, write
from fedshare.experiments.commands.ledger_summary import opened
from fedshare.experiments.config import build
from fedshare.experiments.config.device import device_of
from fedshare.experiments.config.stored import stored
from fedshare.experiments.config.trust import Trust
from fedshare.ledger import Manifest
from fedshare.ledger.file import Contents
from fedshare.ledger.replay import count, parted
from fedshare.ledger.replay import replay as rebuild
from fedshare.machine.devices import cores
from fedshare.machine.threads import threads
from fedshare.report.units import decimal, human_seconds
from fedshare.rounds import chain
from fedshare.runs import RunFolder, checkpoint
from fedshare.simulation import Population
from fedshare.state import State, digests
from fedshare.tasks.metrics import summarise
from fedshare.tensors import digest
from fedshare.training.scratch import Scratch


def replay(run: str, round: int | None, into: str | None, trusted: Trust | None = None) -> bool:
    """Rebuild the model after `round`, by default the last; return whether it equals the recorded one.

    `trusted`: as for `stored`.
    """
    folder = RunFolder.open(run)
    path = target(into) if into else None
    contents, meaning = opened(folder)
    last = _last(folder, contents)
    behind = ""
    if round is None:
        round = last
        if (links := folder.links()) and last < links[-1].round:
            behind = f"; no later one is in the ledger, and the run is at round {links[-1].round}"
    if not 0 <= round <= last:
        raise UserError(f"--round {round}: {folder.ledger.path} has 0, the initial model, to {last}")
    config, population = _begun(folder, contents.manifest, trusted)
    scratch = population.scratch
    commits = [commit for commit in contents.commits if commit.round <= round]
    with threads(cores()), _named(folder):
        began = time.perf_counter()
        rebuild(meaning, commits, scratch.first, scratch.vector)
        seconds = time.perf_counter() - began
    entries = count(meaning, commits)
    wrong = _not_recorded(folder, round, scratch)
    print(f"model     of round {round}, {wrong or ('as recorded' if round else 'which everyone starts from')}{behind}")
    print(f"sha256    {digest(scratch.vector)}")
    print(f"ledger    {entries:,} entries in {len(commits):,} commits", end="")
    print(f", replayed in {human_seconds(seconds)}: {entries / seconds:,.0f} entries a second" if entries else "")
    if path and not wrong:
        print(f"into      {write(path, scratch.module, config)}")
    return not wrong


def undo(run: str, peers: Collection[int], since: int, into: str | None, trusted: Trust | None = None) -> None:
    """Rebuild the last model without the messages that `peers` sent from round `since` on.

    `trusted`: as for `stored`.
    """
    folder = RunFolder.open(run)
    path = target(into) if into else None
    contents, meaning = opened(folder)
    if not contents.places:
        raise UserError(f"{folder.ledger.path}: has no commit yet")
    known = {peer for commit in contents.commits for peer in commit.said}
    for peer in peers:
        if peer not in known:
            raise UserError(f"--peer {peer}: has not spoken in {folder.ledger.path}; allowed: {_ranges(known)}")
    last = contents.commits[-1].round
    if not 1 <= since <= last:
        raise UserError(f"--from-round {since}: {folder.ledger.path} has 1 to {last}")
    config, population = _begun(folder, contents.manifest, trusted)
    scratch, found = population.scratch, []
    kept, taken = parted(contents.commits, peers, since)
    memories = _memories(folder, scratch)
    with threads(cores()), streams(folder), _named(folder):
        for commits in (contents.commits, kept):
            rebuild(meaning, commits, scratch.first, scratch.vector)
            wrong = None if commits is kept else _not_recorded(folder, _last(folder, contents), scratch)
            if wrong:
                warn(f"{folder.path}: its model with all entries is {wrong}")
            found.append((digest(scratch.vector), _tested(population, memories)))
    written = write(path, scratch.module, config) if path else None
    entries = [count(meaning, commits) for commits in (taken, contents.commits)]
    who = f"peer{'s' * (len(set(peers)) > 1)} {_ranges(peers)}"
    places = f"{len(taken):,} of {len(contents.commits):,} commits"
    print(f"left out  {who} from round {since} on: {entries[0]:,} of {entries[1]:,} entries, in {places}")
    for name, (hash, result) in zip(("with", "without"), found, strict=True):
        shown = [key for key, value in result.items() if isinstance(value, float) and key in result["per_client"]]
        well = [f"{key} {decimal(result[key])}" for key in shown]
        print(f"{name:<9} {', '.join([*well, f'sha256 {hash}'])}")
    if written:
        print(f"into      {written}")


def _begun(folder: RunFolder, manifest: Manifest, trusted: Trust | None) -> tuple[DictConfig, Population]:
    """Return the run's config, and the population with the ledger's initial model. Raises UserError if that is lost."""
    config = stored(folder, trusted=trusted)
    try:
        device_of(config.device)
    except UserError as error:  # the bits are the same on any device
        warn(f"{error}; on the CPU instead")
        config.device = "cpu"
    with streams(folder):
        population = build.population_of(config)
    begin(folder, population, config)
    scratch = population.scratch
    layout = [(name, list(t.shape)) for name, t in scratch.initial.items() if isinstance(t, nn.Parameter)]
    if layout != manifest.layout or digest(scratch.first) != manifest.initial:
        raise UserError(
            f"{folder.ledger.path}: starts from another model than the config makes now: {why_another(folder, config)}"
        )
    return config, population


@contextmanager
def _named(folder: RunFolder) -> Iterator[None]:
    """Prefix errors with the file that cannot be used."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise UserError(f"{folder.ledger.path}: {error}") from error


def _last(folder: RunFolder, contents: Contents) -> int:
    """The last round that the ledger covers; no client was heard after its last commit."""
    last = contents.places[-1].commit.round if contents.places else 0
    (head,) = digests({"head": contents.head}).values()
    later = [link.round for link in folder.links() if link.server.get("ledger/head") == head]
    return max([last, *later])


def _not_recorded(folder: RunFolder, round: int, scratch: Scratch) -> str | None:
    """Return what differs from the recorded model; None if it is equal."""
    link = next((link for link in folder.links() if link.round == round), None)
    if round == 0:
        return None
    if link is None:
        return "of which the run has no record"
    found = digests({"params": {name: scratch.views[name] for name in scratch.shared}})
    recorded = {path: leaf for path, leaf in link.server.items() if path.split("/")[0] == "params"}
    path = next(chain.differences(recorded, found), None)
    return f"not as recorded: {path} differs" if path else None


def _memories(folder: RunFolder, scratch: Scratch) -> dict[int, State]:
    """The clients' memories, if a part of the model is local."""
    last = checkpoint.latest(folder.checkpoints, warn) if scratch.local else None
    if scratch.local and (last is None or last.remote):
        warn(f"{folder.path}: the clients' own parts of the model are not here: tested with those they began with")
    return last.clients if last and not last.remote else {}


def _tested(population: Population, memories: dict[int, State]) -> dict[str, Any]:
    """Test the current model on all clients, each with its own part of it."""
    scratch, results = population.scratch, {}
    for id in range(len(population.shares)):
        local = memories.get(id, {}).get("local", {})
        for name in scratch.local:
            scratch.views[name].copy_(local.get(name, scratch.whole[name]))
        one = population.client(id, {})
        results[id] = one.sums(one.test_examples)
    for name in scratch.local:
        scratch.views[name].copy_(scratch.whole[name])
    return summarise(population.task, results)


def _ranges(numbers: Collection[int]) -> str:
    """Format numbers as ``0 to 4, 7``."""
    runs = list[list[int]]()
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
