"""What `fedshare doctor` asks of a peer or a relay: its run, its version, who is there, and its clock."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from omegaconf import DictConfig

import fedshare
from fedshare._proto.mesh_pb2 import MeshStatus
from fedshare._proto.relay_pb2 import StatusSaid
from fedshare.errors import NAME, UserError, brief
from fedshare.experiments.hosts.host_checks import FAILED, OK, WARNING, Finding
from fedshare.identity.identity import Identity
from fedshare.transport.mesh import probe, settings
from fedshare.transport.mesh.probe import Found
from fedshare.transport.relay import protocol
from fedshare.transport.stream.frames import FrameError, parse

KINDS = {settings.SERVICE: "the peer", protocol.SERVICE: "the relay"}
SKEW = 1.0  # clock difference in seconds below which nothing is reported


@dataclass(frozen=True)
class Status:
    run: str  # its name in hex
    version: str
    line: str  # what it does now


def described(address: str, identity: Identity | None, found: Found, deadline: float) -> Iterator[Finding]:
    """Yield what a peer or a relay says of itself."""
    said, status = _asked(address, identity, found, deadline)
    yield OK, f"{address}: {status.line}"
    if status.version != fedshare.__version__:
        theirs = f"fedshare {brief(status.version, NAME)}"
        yield FAILED, f"{address}: it runs {theirs}, this host fedshare {fedshare.__version__}"
    if said.ahead is not None:
        yield clock(KINDS[found.service], said.ahead, said.doubt)


def compared(address: str, identity: Identity | None, found: Found, config: DictConfig, deadline: float) -> Finding:
    """Say whether this config is that of the run of a peer or a relay."""
    from fedshare.experiments.hosts.peer import run_of  # loads torch, which other checks need not wait for

    _, status = _asked(address, identity, found, deadline)
    ours = run_of(config).hex()
    if not status.run:
        return OK, f"{address}: it has no run yet; this config's is {ours[:12]}"
    if status.run != ours:
        reason = "another config, number of rounds or initial model"
        return FAILED, f"{address}: its run is {brief(status.run[:12])}, this config's {ours[:12]}: {reason}"
    return OK, f"{address}: its run is this config's, {ours[:12]}"


def _asked(address: str, identity: Identity | None, found: Found, deadline: float) -> tuple[probe.Said, Status]:
    method, read = _METHODS[found.service]
    said = probe.ask(address, identity, found, method, deadline)
    try:
        return said, read(said.answer)
    except (FrameError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{address}: what it says of itself cannot be read: does it run another version?") from None


def clock(whose: str, ahead: float, doubt: float) -> Finding:
    """The difference between this host's clock and another's."""
    if abs(ahead) > doubt + SKEW:
        return WARNING, f"clock: {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {whose}'s"
    return OK, f"clock: {whose}'s, to within {abs(ahead) + doubt:.2f} s"


def _peer(answer: bytes) -> Status:
    said = parse(MeshStatus, answer)
    there = sum(link.connected for link in said.links)
    neighbours = f"connected with {there} of {len(said.links)} neighbours"
    return Status(said.run.hex(), said.version, f"peer {said.peer}, in round {said.entered}, {neighbours}")


def _relay(answer: bytes) -> Status:
    said = json.loads(parse(StatusSaid, answer).json)
    peers = said["peers"].values()
    there = f"{sum(one['connected'] for one in peers)} of {len(peers)} peers connected"
    waits = f"; {brief(said['waits'])}" if said["waits"] else ""
    return Status(said["run"], said["version"], f"relay, with {said['rounds']} commits in its log, {there}{waits}")


_METHODS: dict[str, tuple[str, Callable[[bytes], Status]]] = {
    settings.SERVICE: (settings.STATUS, _peer),
    protocol.SERVICE: (protocol.STATUS, _relay),
}
