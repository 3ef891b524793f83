"""`fedshare relay`: keep the log of a run among peers, or look into it."""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fedshare
from fedshare.errors import RunHalted, UserError
from fedshare.experiments.hosts import relay_options
from fedshare.experiments.hosts.identities import identity_of
from fedshare.experiments.signals import terminable
from fedshare.identity.admission import Admission
from fedshare.identity.signing import Signer
from fedshare.machine.files import on_disk, private_folder, write_atomically
from fedshare.relay import orders
from fedshare.relay.commits import Head
from fedshare.relay.database import Database, SQLite
from fedshare.relay.entries import MOST_PEERS
from fedshare.relay.events import events
from fedshare.relay.keeper import Keeper, run_of
from fedshare.relay.sequencer import Settings, Verdict
from fedshare.relay.store import Store
from fedshare.relay.verify import check
from fedshare.report.clock import say
from fedshare.transport.relay.server import RelayServer
from fedshare.transport.stream import descriptors

HEAD = "head.json"  # beside the log: where it ended a moment ago
_LOOK = 1.0  # seconds between two looks at the orders


def relay(options: argparse.Namespace) -> int:
    """Keep a log until a signal arrives, or do what the other flags say; return the exit status."""
    relay_options.check(options)
    folder = Path(options.log)
    if options.remove is not None:
        return _remove(folder, options.remove, options.reason)
    if options.check or options.events is not None:
        return _look(options, folder)
    descriptors.raise_limit()
    private_folder(folder)
    with on_disk(folder, lambda: "what was acknowledged is safe; once it can be written, the same command goes on"):
        with running(options, folder) as server, terminable():
            try:
                attend(server, folder)
            except KeyboardInterrupt:
                say("stopped; peers wait for the relay")
                return 130
        raise RunHalted(f"the relay has halted: {server.error}")


@contextmanager
def running(options: argparse.Namespace, folder: Path) -> Iterator[RelayServer]:
    """A relay with these flags, in threads of its own."""
    identity = identity_of(options.keys, "server", options.listen, options.insecure)
    if identity and identity.client_id is not None:
        raise UserError(f"--keys {options.keys}: that is client {identity.client_id}'s folder, not the relay's")
    signer = identity.signer() if identity else Signer.unprotected("relay")
    settings = Settings(
        round_seconds=options.round_seconds,
        min_peers=options.min_peers,
        peers=options.peers,
        message=int(options.message_mb * 2**20),
    )
    store = Store(_database(options, folder, True))
    _compare(store, folder)
    run = run_of(options.run) if options.run else b""
    keeper = Keeper(store, signer, settings, _room(folder, options.reserve_mb), say, run)
    server = RelayServer(
        options.listen,
        identity,
        keeper,
        lambda: Store(_database(options, folder, False), False),
        Admission.of(identity.folder if identity else None, options.deny, options.allow, say),
        fedshare.__version__,
        options.heartbeat,
        say,
    )
    exporter = None
    if options.metrics:
        from fedshare.experiments.hosts.relay_metrics import Metrics

        exporter = Metrics(server.host.status)
        say(f"metrics at {exporter.listen(options.metrics)}")
    try:
        server.start()
        security = "mutual TLS" if identity else "no TLS"
        rounds = keeper.sequencer.members.round
        say(f"listening on {server.address}, {security}; {store.name}: {_ended(rounds)}, epoch {store.epoch}")
        yield server
    finally:
        server.close()
        if exporter:
            exporter.close()


def attend(server: RelayServer, folder: Path) -> None:
    """Carry out orders, and keep the head beside the log, until the relay halts."""
    kept: Head | None = None
    while not server.halted.wait(_LOOK):
        for path, peer, reason in orders.removals(folder):
            server.keeper.remove(peer, reason, _removed(server, path, peer, reason))
        if (last := server.keeper.last) is not None and last != kept:
            with suppress(OSError):  # a full disk: the log says so itself
                write_atomically(folder / HEAD, json.dumps({"round": last.round, "head": last.head.hex()}), 0o600)
                kept = last


def _removed(server: RelayServer, path: Path, peer: int, reason: str) -> Callable[[Verdict], None]:
    def done(verdict: Verdict) -> None:
        if not verdict.why:
            path.unlink(missing_ok=True)
            say(f"peer {peer} is removed: {reason}")
            server.post(lambda: server.host.expel(peer, f"peer {peer} was removed: {reason}"))

    return done


def _room(folder: Path, reserve: float) -> Callable[[], str | None]:
    def room() -> str | None:
        free = shutil.disk_usage(folder).free / 2**20
        return None if free >= reserve else f"{folder}: {free:.1f} MB are free, less than --reserve-mb {reserve:g}"

    return room


def _remove(folder: Path, peer: int, reason: str) -> int:
    if not 0 <= peer < MOST_PEERS:
        raise UserError(f"--remove {peer}: must be from 0 to {MOST_PEERS - 1}")
    if not folder.is_dir():
        raise UserError(f"--log {folder}: there is no log")
    orders.order_removal(folder, peer, reason)
    print(f"the relay of {folder} is ordered to remove peer {peer}; it does so while it runs, or when it is started")
    return 0


def _look(options: argparse.Namespace, folder: Path) -> int:
    store = Store(_database(options, folder, False), False)
    if options.events is not None:
        print("\n".join(events(store.commits(0), options.events)))
        return 0
    found = check(store)
    _compare(store, folder)
    here = found.members.ids()
    print(
        f"{store.name}: sound: {_ended(found.members.round)}, {found.entries} entries, all signed; run "
        f"{found.run.hex()[:12]}; head {found.head.hex()}; peers: {', '.join(map(str, here)) or 'none'}"
    )
    for peer, one in sorted(found.members.all.items()):
        if one.removed:
            print(f"peer {peer} was removed: {one.removed}")
    return 0


def _compare(store: Store, folder: Path) -> None:
    """Raise UserError if the log lacks what the file beside it has seen."""
    try:
        kept = json.loads((folder / HEAD).read_text())
        round, head = int(kept["round"]), bytes.fromhex(kept["head"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # it is a second witness: peers are others
    if (found := store.head(round)) is None or found.head != head:
        last = store.last.round if store.last else -1
        raise UserError(
            f"{store.name}: {_ended(last)}, but {folder / HEAD} has seen round {round}: commits are lost, or this is "
            f"an old copy; peers that have seen them will refuse it. Restore the newest copy, or remove {folder / HEAD}"
        )


def _database(options: argparse.Namespace, folder: Path, write: bool) -> Database:
    if options.postgres:
        from fedshare.relay.postgres import Postgres

        return Postgres(options.postgres, write)
    return SQLite(folder / "log.db", write)


def _ended(round: int) -> str:
    return "no round yet" if round < 0 else f"rounds up to {round}"
