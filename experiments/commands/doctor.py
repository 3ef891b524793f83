"""`fedshare doctor`: what prevents a deployment from working, one line each.

It probes a server without greeting it as a client, so that running clients are not disturbed.
"""

import argparse
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fedshare
from fedshare.errors import UserError, first_line
from fedshare.experiments.hosts import host_checks, peer_checks
from fedshare.experiments.hosts.host_checks import FAILED, OK, TORCH_SECONDS, WARNING, Finding
from fedshare.identity.admission import ALLOWED, DENIED, Roll
from fedshare.identity.identity import Identity, describe, endings, place
from fedshare.transport.mesh import probe
from fedshare.transport.stream.diagnose import is_local, split
from fedshare.transport.stream.health import ask
from fedshare.transport.stream.service import SERVICE

HEALTH_SECONDS = 5.0
SERVICES = (SERVICE, *peer_checks.KINDS)
_UNUSED_HERE = ("ca.key", "supernode")  # private keys that open no stream, and would make it refuse them

Check = Callable[[argparse.Namespace], Iterator[Finding]]


def examine(options: argparse.Namespace) -> int:
    """Print findings as they come; return 2 if any FAILED, else 0. Each check has a deadline."""
    said = set[Finding]()
    for check, seconds in _CHECKS.items():
        for level, line in _until(seconds, check, options):
            if (level, line) not in said:  # a certificate that cannot be loaded is found twice
                print(f"{level:<7}  {line}", flush=True)
            said.add((level, line))
    return 2 if any(level == FAILED for level, _ in said) else 0


def _until(seconds: float, check: Check, options: argparse.Namespace) -> Iterator[Finding]:
    """Yield what `check` finds. It runs in a thread, because some waits, such as for DNS, cannot be interrupted."""
    found: queue.SimpleQueue[Finding | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for finding in check(options):
                found.put(finding)
        except (UserError, OSError) as error:
            found.put((FAILED, first_line(error)))
        except BaseException as error:
            found.put(error)
        found.put(None)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := found.get(timeout=seconds)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    except queue.Empty:
        yield FAILED, f"{check.__name__.strip('_')}: no result in {seconds:g} s"


def _keys(options: argparse.Namespace) -> Iterator[Finding]:
    if not options.keys:
        return
    folder = Path(options.keys)
    ends = describe(folder)
    sound = True
    for participant in _places(folder, options.id):
        try:
            identity = Identity.load(participant)
            if identity.signing_key:
                identity.signer()
        except UserError as error:
            sound = False
            yield FAILED, str(error)
    for name, said in endings(folder):
        if not said.startswith("ended"):  # otherwise it cannot be loaded
            yield WARNING, f"{folder}: the certificate of {name} {said}; `fedshare keys` renews it"
    for path in sorted(path for path in folder.rglob("*") if path.name in _UNUSED_HERE):
        if (mode := path.stat().st_mode & 0o777) & 0o077:
            yield WARNING, f"{path}: others may read it (mode {mode:04o}): chmod 600"
    if sound:
        first, end = min(ends, key=lambda found: found[1])
        names = ", ".join(name for name, _ in ends[:5]) + ", ..." * (len(ends) > 5)
        yield OK, f"{folder}: certificates of {names}; {first}'s ends first, on {end:%Y-%m-%d}"
    for path in (place(folder, "server") / name for name in (DENIED, ALLOWED)):
        if path.exists():
            yield OK, f"{path}: {len(Roll.read(path))} entries"


def _places(folder: Path, id: int | None) -> list[Path]:
    """The folders of the participants whose certificates are relevant."""
    if any((folder / f"{role}.crt").exists() for role in ("server", "client")):
        return [folder]
    if id is not None:
        return [folder / f"client-{id}"]
    clients = sorted(folder.glob("client-*"), key=lambda path: (len(path.name), path))
    return [each for each in (folder / "server", *clients) if each.exists()]


def _listening(options: argparse.Namespace) -> Iterator[Finding]:
    if not options.listen:
        return
    host, port = split(options.listen)
    _require_tls(options.listen, host, options)
    if options.keys and not any(found.client_id is None for found in _identities(options.keys, None)):
        raise UserError(f"{options.keys}: holds no server's certificate, without which no client trusts a server")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        known = isinstance(error.errno, int) and error.errno > 0  # resolver errors have numbers below 0
        reason = os.strerror(error.errno or 0) if known else error.strerror
        raise UserError(f"{options.listen}: a server cannot listen there: {reason}") from None
    yield OK, f"{options.listen}: a server could listen there"


def _server(options: argparse.Namespace) -> Iterator[Finding]:
    if not options.server:
        return
    _require_tls(options.server, split(options.server)[0], options)
    identity = _identity(options)
    what = probe.reached(options.server, identity)
    who = "no TLS" if identity is None else f"mutual TLS as client {identity.client_id}"
    there = "" if what is None else f"; peer {what} is there"
    yield OK, f"{options.server}: can be reached, {who}{there}"
    proxies = [name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)]
    try:
        found = probe.find(options.server, identity, SERVICES, HEALTH_SECONDS)
    except UserError as error:
        hint = f"; gRPC goes through ${proxies[0]} unless $no_proxy names the host" if proxies else ""
        raise UserError(f"{error}{hint}") from None
    if found.health != "SERVING":
        raise UserError(f"{options.server}: its health is {found.health}: it starts, or it is about to end")
    yield OK, f"{options.server}: its health is {found.health}"
    if found.service in peer_checks.KINDS:
        yield from peer_checks.described(options.server, identity, found, HEALTH_SECONDS)


def _require_tls(address: str, host: str, options: argparse.Namespace) -> None:
    if not (options.keys or options.insecure or is_local(host)):
        raise UserError(f"{address}: off this machine it takes TLS: --keys DIR, or --insecure")


def _identity(options: argparse.Namespace) -> Identity | None:
    """The identity to connect as: that of the client named, or any."""
    if not options.keys:
        return None
    found = next((found for found in _identities(options.keys, options.id) if found.client_id is not None), None)
    if found is None:
        raise UserError(f"{options.keys}: holds no client's certificate, which a server asks for")
    if options.id not in (None, found.client_id):
        raise UserError(f"{options.keys}: its certificate is client {found.client_id}'s, not client {options.id}'s")
    return found


def _identities(folder: str, id: int | None) -> Iterator[Identity]:
    return map(Identity.load, _places(Path(folder), id))


def _welcome(options: argparse.Namespace) -> Iterator[Finding]:
    """Yield the server's answer to this client and config. Connected clients are not disturbed."""
    digest, config, own = "", None, bool(options.overrides or options.config_name)
    if own:
        from fedshare.experiments.config import application, compose
        from fedshare.experiments.config.schema import SHARED

        name, app = options.config_name or "config", application.hydra(options.config_dir)
        config = compose.resolved(options.overrides, name, app)
        from fedshare.experiments.hosts import agreement  # loads torch, which checking a config need not wait for

        digest = agreement.digest(config)
        yield (
            OK,
            f"config: {digest[:12]}, the digest of what server and clients must share: {', '.join(SHARED)}",
        )
    if not options.server or (options.id is None and not own):
        return
    identity = _identity(options)
    found = probe.find(options.server, identity, SERVICES, HEALTH_SECONDS)
    if found.service != SERVICE:
        if config is not None:
            yield peer_checks.compared(options.server, identity, found, config, HEALTH_SECONDS)
        return
    id = options.id if identity is None or identity.client_id is None else identity.client_id
    answer = ask(options.server, identity, id or 0, fedshare.__version__, digest, HEALTH_SECONDS, options.run or "")
    yield FAILED if answer.refusal else OK, f"{options.server}: {answer.refusal or f'would let client {id or 0} in'}"
    yield peer_checks.clock("the server", answer.ahead, answer.doubt)


_CHECKS: dict[Check, float] = {  # the most seconds until its next line
    host_checks.versions: 30.0,
    _keys: 60.0,
    _listening: 30.0,
    _server: 30.0,
    _welcome: TORCH_SECONDS,
    host_checks.clock: 30.0,
    host_checks.state: TORCH_SECONDS,
    host_checks.gpus: 2 * TORCH_SECONDS,
}
