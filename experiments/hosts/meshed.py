"""A peer whose neighbours are reached directly, over the links of a graph."""

import argparse
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

import fedshare
from fedshare.errors import UserError
from fedshare.experiments.config import build
from fedshare.experiments.hosts.leaving import Leaving, played
from fedshare.experiments.hosts.participant import Part
from fedshare.experiments.hosts.voice import REMOVALS, Signed
from fedshare.experiments.hosts.written import Written
from fedshare.experiments.tracking import Tracker
from fedshare.identity import owner
from fedshare.identity.signing import Verifier
from fedshare.ledger.meaning import Meaning
from fedshare.machine.files import private_folder
from fedshare.peers import Topology
from fedshare.peers.flood import receivers_of
from fedshare.peers.gathering import Gathering
from fedshare.peers.mesh import Apart
from fedshare.peers.recorded import Collects
from fedshare.report.clock import say
from fedshare.runs import checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Population
from fedshare.simulation.peers import Player
from fedshare.transport.mesh.lan import Lan
from fedshare.transport.mesh.links import MeshLinks
from fedshare.transport.mesh.settings import Settings
from fedshare.transport.stream.diagnose import split


def address(options: argparse.Namespace, config: DictConfig, population: Population) -> str:
    """Return where this peer listens. Raises UserError if the config is not for a mesh, or the address is missing."""
    if not isinstance(population.strategy, Apart):
        raise UserError("peers: `fedshare peer` takes a graph, such as peers=ring, or --relay and peers=none")
    population.strategy.check_apart()
    for given in filter(None, [options.advertise, *options.known]):
        split(given)
    known = _addresses(config, len(population.shares))
    found = options.listen or known.get(options.id)
    if not found:
        raise UserError("--listen: required: HOST:PORT, the address for this peer's neighbours; or addresses=[...]")
    return str(found)


def take_part(part: Part, options: argparse.Namespace, start: Checkpoint | None, watcher: Tracker) -> None:
    """Run the rounds after `start`; `watcher` is told of each."""
    config, population, place = part.config, part.population, part.folder.path / "peer"
    strategy = population.strategy
    assert isinstance(strategy, Apart)
    private_folder(place)
    listen, known = address(options, config, population), _addresses(config, len(population.shares))
    settings = Settings(
        run=part.run,
        version=fedshare.__version__,
        peers=len(population.shares),
        rounds=config.rounds,
        wait=options.wait,
        grace=options.grace,
        timeout=config.timeout,
        heartbeat=options.heartbeat,
    )
    neighbours = _neighbours(config, population, part.me)
    lan = Lan(part.run, part.me, options.advertise or listen) if options.lan else None
    mesh = MeshLinks(
        *(part.me, listen, known, neighbours, settings, part.identity, part.signer, place / "links"),
        advertise=options.advertise,
        events=part.folder.path / "events.jsonl",
        known=lan.addresses if lan else options.known,
        say=say,
    )
    operator = Verifier(owner.public(Path(options.owner))) if options.owner else None
    voice = Signed(
        *(part.run, part.me, part.signer, mesh.verifier, part.folder.path / "proofs", say),
        *(operator, part.folder.path / REMOVALS),
    )
    with ExitStack() as stack:
        stack.callback(mesh.close)
        if lan:
            lan.addresses.update(options.known)
            stack.enter_context(lan)
        own, peers = strategy.at(part.me, mesh, voice)
        mine = replace(population, strategy=own)
        player = Written(Player(mine, part.me), place / "upload")
        gathering = Gathering(peers, part.me, player, start.round if start else 0)
        network = Leaving(gathering, lambda: mesh.entered > config.rounds)
        security = "mutual TLS" if part.identity else "no TLS"
        say(f"peer {part.me} of run {part.run.hex()[:12]}: listens at {listen}, {security}")
        say(f"neighbours: {_listed(neighbours)}")
        if played(part, network, mine, start, watcher) and isinstance(own, Collects):
            _keep_ledger(part, own)
        mesh.leave()


def _keep_ledger(part: Part, strategy: Collects) -> None:
    """Write the ledger of all rounds, which was complete after the last one only."""
    state = checkpoint.load(part.folder.checkpoints, part.config.rounds).server
    ledger = part.folder.ledger
    ledger.create(manifest := Meaning.of(state["manifest"]).manifest)
    head = manifest.head
    for commit in strategy.commits(state):
        ledger.append(commit, head := commit.head(head))
    say(f"{ledger.path}: the ledger, complete; `fedshare replay {part.folder.path}` rebuilds the model from it")


def _addresses(config: DictConfig, count: int) -> dict[int, str]:
    given = config.addresses or []
    if len(given) not in (0, count):
        raise UserError(f"addresses: must have one HOST:PORT for each of the {count} peers, in their order")
    return {peer: str(address) for peer, address in enumerate(given) if address}


def _neighbours(config: DictConfig, population: Population, me: int) -> set[int]:
    """Return the peers with whom this one ever exchanges anything, either way."""
    graph, count = build.peering(config), len(population.shares)
    assert isinstance(graph, Topology)
    if (period := graph.period(count)) is None:
        return set(range(count)) - {me}
    found = set[int]()
    for round in range(1, period + 1):
        links = graph.links(count, config.seed, round)
        found |= {*links[me], *receivers_of(links, me)}
    return found


def _listed(peers: set[int], most: int = 10) -> str:
    some = sorted(peers)
    return ", ".join(map(str, some[:most])) + (f" and {len(some) - most} more" if len(some) > most else "")
