"""`fedshare peer`: one participant of a run without a server, from the command line to its rounds."""

import argparse
import hashlib
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

import fedshare
from fedshare.errors import RunHalted, UserError
from fedshare.experiments import beginnings
from fedshare.experiments.config import application, build, compose
from fedshare.experiments.config.schema import MAY_CHANGE, MEANT
from fedshare.experiments.config.stored import stored
from fedshare.experiments.config.trust import Trust
from fedshare.experiments.hosts import agreement
from fedshare.experiments.hosts.deploy_options import check_ranges
from fedshare.experiments.hosts.identities import identity_of
from fedshare.experiments.hosts.participant import Part
from fedshare.experiments.hosts.relayed import Following, Way
from fedshare.experiments.hosts.voice import Signed
from fedshare.experiments.hosts.written import Written
from fedshare.experiments.running.going_on import last_checkpoint
from fedshare.experiments.running.rounds import rounds
from fedshare.identity.signing import Signer
from fedshare.ledger.meaning import Meaning
from fedshare.machine.files import on_disk, private_folder
from fedshare.peers import Topology
from fedshare.peers.gathering import Gathering
from fedshare.peers.mesh import Apart
from fedshare.peers.recorded import Collects
from fedshare.report.clock import say
from fedshare.runs import RunFolder, checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Population
from fedshare.simulation.peers import Player
from fedshare.transport.mesh.links import MeshLinks
from fedshare.transport.mesh.settings import Settings
from fedshare.transport.stream import descriptors


def peer(options: argparse.Namespace) -> int:
    """Take part in a run as one peer. The same command goes on with a run that was interrupted."""
    descriptors.raise_limit()
    check_ranges(options)
    config, folder, resuming = _asked(options)
    _check(config, options)
    population = build.tried(config)
    if not isinstance(population.strategy, Apart):
        raise UserError("peers: `fedshare peer` takes a graph, such as peers=ring")
    population.strategy.check_apart()
    everyone = len(population.shares)
    if not 0 <= options.id < everyone:
        raise UserError(f"--id {options.id}: must be from 0 to {everyone - 1}, for the run has {everyone} peers")
    known = _addresses(config, options, everyone)
    listen = options.listen or known.get(options.id)
    if not listen and not options.relay:
        raise UserError("--listen: required: HOST:PORT, the address for this peer's neighbours; or addresses=[...]")
    identity = identity_of(options.keys, f"client-{options.id}", options.relay or listen, options.insecure)
    if identity and identity.client_id != options.id:
        raise UserError(f"--keys {options.keys}: its certificate is {identity.who}'s, not client {options.id}'s")
    signer = identity.signer() if identity else Signer.unprotected(f"peer {options.id}")
    if resuming:
        beginnings.begin(folder, population, config)
    else:
        beginnings.create(folder, config, population)
    part = Part(config, population, folder, options.id, _name(config, population), identity, signer)
    with on_disk(folder.path, lambda: "once it can be written, the same command goes on"), folder.lock():
        start = last_checkpoint(folder, config) if resuming else None
        if start and start.round == config.rounds:
            return 0
        if resuming:
            folder.rewind(start.round if start else 0)
            folder.amend(OmegaConf.to_yaml(config))
            say(f"going on with {folder.path} after round {start.round if start else 0}")
        if options.relay:
            _relayed(part, options, start)
        else:
            _live(part, options, listen, known, start)
    return 0


def _relayed(part: Part, options: argparse.Namespace, start: Checkpoint | None) -> None:
    config, place = part.config, part.folder.path / "peer"
    if isinstance(part.population.strategy, Apart):
        raise UserError("--relay: takes peers=none: all peers have the same uploads, and no graph")
    after = start.round if start else 0
    with ExitStack() as stack:
        way = Way(part, options.relay, place, options.wait, options.heartbeat, config.timeout)
        relayed = way.follow(stack, after)
        player = Written(Player(part.population, part.me), place / "upload")
        following = Following(relayed, part.me, player, after, part.folder, options.attest_every, way.leave_snapshot)
        network = Leaving(following)
        security = "mutual TLS" if part.identity else "no TLS"
        say(f"peer {part.me} of run {part.run.hex()[:12]}: relay {options.relay}, {security}")
        try:
            rounds(config, part.folder, network, part.population, start, None, interrupts=network.leaving, alone=True)
        except RunHalted:
            if not network.left:
                raise
            say(f"peer {part.me} leaves after round {network.done}; the same command goes on with {part.folder.path}")
        if not relayed.leave():
            say("the relay has not heard that this peer leaves; it finds out by itself")


def _live(
    part: Part, options: argparse.Namespace, listen: str, known: dict[int, str], start: Checkpoint | None
) -> None:
    config, population, place = part.config, part.population, part.folder.path / "peer"
    strategy = population.strategy
    assert isinstance(strategy, Apart)
    private_folder(place)
    settings = Settings(
        run=part.run,
        version=fedshare.__version__,
        peers=len(population.shares),
        wait=options.wait,
        grace=options.grace,
        timeout=config.timeout,
        heartbeat=options.heartbeat,
    )
    neighbours = _neighbours(config, population, part.me)
    mesh = MeshLinks(
        *(part.me, listen, known, neighbours, settings, part.identity, part.signer, place / "links"),
        events=part.folder.path / "events.jsonl",
        say=say,
    )
    voice = Signed(part.run, part.me, part.signer, mesh.verifier, part.folder.path / "proofs", say)
    with ExitStack() as stack:
        stack.callback(mesh.close)
        own, peers = strategy.at(part.me, mesh, voice)
        mine = replace(population, strategy=own)
        player = Written(Player(mine, part.me), place / "upload")
        network = Leaving(Gathering(peers, part.me, player, start.round if start else 0))
        security = "mutual TLS" if part.identity else "no TLS"
        say(f"peer {part.me} of run {part.run.hex()[:12]}: listens at {listen}, {security}")
        say(f"neighbours: {_listed(neighbours)}")
        try:
            rounds(config, part.folder, network, mine, start, None, interrupts=network.leaving, alone=True)
        except RunHalted:
            if not network.left:
                raise
            say(f"peer {part.me} leaves after round {network.done}; the same command goes on with {part.folder.path}")
        else:
            if isinstance(own, Collects):
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


class Leaving:
    """A network that ends a peer's run between two rounds, when SIGTERM or SIGINT has asked for it; twice: at once."""

    def __init__(self, network: Gathering) -> None:
        self._network, self._asked = network, False
        self.left = False
        self.memories, self.exchange = network.memories, network.exchange

    def client_ids(self) -> list[int]:
        if self._asked:
            self.left = True
            raise RunHalted(f"peer {self._network.me} leaves")
        return self._network.client_ids()

    @property
    def done(self) -> int:
        """The last round done."""
        return self._network.start

    @contextmanager
    def leaving(self) -> Iterator[None]:
        def ask(number: int, frame: Any) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self._asked = True
            say(f"peer {self._network.me} leaves when its round is over; a second signal ends it now")

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _asked(options: argparse.Namespace) -> tuple[DictConfig, RunFolder, bool]:
    """Return the config, the run's folder, and whether it holds this run already."""
    app = application.hydra(options.config_dir)
    named = compose.folder(options.overrides, options.config_name, app)
    if not named:
        raise UserError("folder: required: folder=FOLDER, where the same command finds the run again")
    folder, config = RunFolder(named), compose.resolved(options.overrides, options.config_name, app)
    if not (resuming := folder.config.exists()):
        return config, folder, resuming
    beginnings.check_streams(folder)
    began = stored(folder, trusted=Trust.of(options.trust, options.config_dir, config))
    before, now = (OmegaConf.to_container(one) for one in (began, _settled(config)))
    assert isinstance(before, dict)
    assert isinstance(now, dict)
    for key in map(str, config):
        if key not in MAY_CHANGE and before.get(key) != now[key]:
            raise UserError(f"{named} holds a run with another {key}: name another folder, or give the same config")
    return config, folder, resuming


def _settled(config: DictConfig) -> DictConfig:
    """Set what a peer never leaves open: it trains by the plain engine, and saves every round."""
    config.engine, config.checkpoint_every = "plain", 1
    return config


def _check(config: DictConfig, options: argparse.Namespace) -> None:
    """Raise UserError for a config that peers in processes of their own cannot carry out."""
    if config.engine not in ("auto", "plain"):
        raise UserError(f"engine={config.engine}: is for simulations; peers train by plain")
    for key in ("links", "cluster"):
        if config[key] != MEANT[key]:
            raise UserError(f"{key}: is for simulations; between processes it must be {key}=none")
    if config.attack.get("adversaries"):
        raise UserError("attack: is for simulations; between processes it must be attack=none")
    if config.patience is not None:
        raise UserError(f"patience={config.patience}: peers would end after different rounds; it must be null")
    peers, some = config.partition.get("clients"), config.clients_per_round
    if some is not None and (peers is None or some < peers):
        raise UserError(f"clients_per_round={some}: every peer takes part in every round: clients_per_round=null")
    _settled(config)


def _addresses(config: DictConfig, options: argparse.Namespace, count: int) -> dict[int, str]:
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
        found |= {*links[me]} | {peer for peer, senders in enumerate(links) if me in senders}
    return found


def _name(config: DictConfig, population: Population) -> bytes:
    """Return the run's name: SHA-256 of what all peers must share, the last round and the initial model."""
    words = agreement.digest(config), str(config.rounds), population.scratch.fingerprint
    return hashlib.sha256(" ".join(words).encode()).digest()


def _listed(peers: set[int], most: int = 10) -> str:
    some = sorted(peers)
    return ", ".join(map(str, some[:most])) + (f" and {len(some) - most} more" if len(some) > most else "")
