"""`fedshare peer`: one participant of a run without a server, from the command line to its rounds."""

import argparse
import hashlib
from contextlib import ExitStack

from omegaconf import DictConfig, OmegaConf

from fedshare.errors import UserError
from fedshare.experiments.beginnings import begin, check_streams, create
from fedshare.experiments.config import application, build, compose
from fedshare.experiments.config.schema import MAY_CHANGE, MEANT
from fedshare.experiments.config.stored import stored
from fedshare.experiments.config.trust import Trust
from fedshare.experiments.hosts import agreement, meshed, relay_inside, relayed
from fedshare.experiments.hosts.deploy_options import check_ranges
from fedshare.experiments.hosts.identities import identity_of
from fedshare.experiments.hosts.participant import RUN_NAME, Part
from fedshare.experiments.running.going_on import last_checkpoint
from fedshare.experiments.tracking import NoTracker, Tracker
from fedshare.identity.signing import Signer
from fedshare.machine.files import on_disk, write_atomically
from fedshare.report.clock import say
from fedshare.runs import RunFolder
from fedshare.simulation import Population
from fedshare.transport.stream import descriptors


def peer(options: argparse.Namespace) -> int:
    """Take part in a run as one peer. The same command goes on with a run that was interrupted."""
    descriptors.raise_limit()
    check_ranges(options)
    if options.with_relay:
        options.relay = relay_inside.reached(options.with_relay)
    way = relayed if options.relay else meshed
    config, folder, resuming = _asked(options)
    _check(config)
    population = build.tried(config)
    everyone = len(population.shares)
    if not 0 <= options.id < everyone:
        raise UserError(f"--id {options.id}: must be from 0 to {everyone - 1}, for the run has {everyone} peers")
    address = way.address(options, config, population)
    identity = identity_of(options.keys, f"client-{options.id}", address, options.insecure)
    if identity and identity.client_id != options.id:
        raise UserError(f"--keys {options.keys}: its certificate is {identity.who}'s, not client {options.id}'s")
    signer = identity.signer() if identity else Signer.unprotected(f"peer {options.id}")
    if resuming:
        begin(folder, population, config)
    else:
        create(folder, config, population)
    part = Part(config, population, folder, options.id, _name(config, population), identity, signer)
    write_atomically(folder.path / RUN_NAME, part.run.hex() + "\n")
    with on_disk(folder.path, lambda: "once it can be written, the same command goes on"), folder.lock():
        start = last_checkpoint(folder, config) if resuming else None
        if start and start.round == config.rounds:
            return 0
        if resuming:
            folder.rewind(start.round if start else 0)
            folder.amend(OmegaConf.to_yaml(config))
            say(f"going on with {folder.path} after round {start.round if start else 0}")
        with ExitStack() as stack:
            if options.with_relay:
                stack.enter_context(relay_inside.inside(options, folder.path / "relay", everyone))
            way.take_part(part, options, start, _watcher(options.metrics, stack))
    return 0


def _watcher(address: str | None, stack: ExitStack) -> Tracker:
    """Return what is told of each round: metrics for Prometheus, if they are asked for."""
    if not address:
        return NoTracker()
    from fedshare.experiments.hosts.prometheus import Exporter

    exporter = Exporter()
    say(f"metrics at {exporter.listen(address)}")
    stack.callback(exporter.close)
    return exporter


def _asked(options: argparse.Namespace) -> tuple[DictConfig, RunFolder, bool]:
    """Return the config, the run's folder, and whether it holds this run already."""
    app = application.hydra(options.config_dir)
    named = compose.folder(options.overrides, options.config_name, app)
    if not named:
        raise UserError("folder: required: folder=FOLDER, where the same command finds the run again")
    folder, config = RunFolder(named), compose.resolved(options.overrides, options.config_name, app)
    if not (resuming := folder.config.exists()):
        return config, folder, resuming
    check_streams(folder)
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


def _check(config: DictConfig) -> None:
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


def run_of(config: DictConfig) -> bytes:
    """Return the name of the run in which a peer with this config would take part, 32 bytes. Raises UserError."""
    _check(config)
    return _name(config, build.tried(config))


def _name(config: DictConfig, population: Population) -> bytes:
    """Return the run's name: SHA-256 of what all peers must share, the last round and the initial model."""
    words = agreement.digest(config), str(config.rounds), population.scratch.fingerprint
    return hashlib.sha256(" ".join(words).encode()).digest()
