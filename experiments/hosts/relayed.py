"""A peer whose others are reached by a relay: how it joins, follows the log, and catches up."""

import argparse
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

import fedshare
from fedshare.errors import RunHalted, UserError, first_line
from fedshare.experiments.hosts.following import Following
from fedshare.experiments.hosts.leaving import Leaving, played
from fedshare.experiments.hosts.participant import Part
from fedshare.experiments.hosts.written import Written
from fedshare.experiments.tracking import Tracker
from fedshare.identity import certificates
from fedshare.identity.identity import Identity
from fedshare.identity.signing import Signer
from fedshare.ledger.transcript import kept
from fedshare.machine.files import private_folder
from fedshare.peers.mesh import Apart
from fedshare.relay.commits import Head
from fedshare.relay.entries import Kind
from fedshare.relay.follower import Checks, Follower
from fedshare.relay.members import Members
from fedshare.relay.position import Position, Positions
from fedshare.relay.spool import Spool
from fedshare.report.clock import say
from fedshare.rounds import chain
from fedshare.rounds.chain import Link
from fedshare.rounds.rows import row_of
from fedshare.runs import checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Population
from fedshare.simulation.peers import Player
from fedshare.state import State, digests, unpack
from fedshare.transport.relay import snapshots
from fedshare.transport.relay.client import RelayClient
from fedshare.transport.relay.relayed import Diverged, Relayed
from fedshare.transport.relay.status import status
from fedshare.transport.stream.diagnose import NotYet


def checks(identity: Identity | None) -> Checks:
    """Return the judge of admissions: over TLS, a certificate of our authority must name the peer and its key."""

    def flaw(peer: int, key: bytes, certificate: bytes) -> str | None:
        if identity is None:
            unprotected = Signer.unprotected(f"peer {peer}").public
            return None if key == unprotected else "its key is not that of a peer without TLS"
        if not certificates.issued(certificate, identity.ca):
            return "our authority has not signed its certificate"
        if certificates.client_id(certificate) != peer or certificates.signing_key_of(certificate) != key:
            return "its certificate does not name this peer and this key"
        return None

    return flaw


@dataclass(frozen=True)
class Way:
    """How a peer reaches the others by the relay at `address`; `place` is its folder for this."""

    part: Part
    address: str
    place: Path
    wait: float
    heartbeat: float
    timeout: float

    def follow(self, stack: ExitStack, start: int) -> Relayed:
        """Connect, and follow the log after round `start`. Raises UserError, or RunHalted."""
        part = self.part
        private_folder(self.place)
        positions = Positions(self.place / "log")
        seen, position = positions.newest(), positions.read(start)
        follower = Follower(
            *(part.run, position, seen, checks(part.identity)),
            *(part.folder.path / "proofs", self.address),
        )
        spool = Spool(self.place / "spool", part.run, part.me, part.signer)
        client = RelayClient(
            *(self.address, part.me, part.signer, part.identity, follower, spool, fedshare.__version__),
            *(self.wait, self.heartbeat, say),
        )
        stack.callback(client.close)
        client.start()
        strategy = part.population.strategy
        state = strategy.init(part.population.scratch.initial, part.population.clients)
        members, round = (position.members, start) if position else (Members(), -1)
        return Relayed(
            client, positions, round, members.copy(), follower.head.head, strategy.expects(state, 0), self.timeout
        )

    def join(self) -> Checkpoint | None:
        """Begin at a snapshot, and return it; None if replaying the log is less to read, or there is no sound one.

        A run with a ledger is always replayed: the ledger is to hold every round.
        """
        part, strategy = self.part, self.part.population.strategy
        initial = strategy.init(part.population.scratch.initial, part.population.clients)
        if kept(initial) is not None:
            return None
        offered = snapshots.offered(self.address, part.identity, self.heartbeat) if self._there() else []
        for one in reversed(offered):
            try:
                data = snapshots.fetch(self.address, part.identity, one.round, one.digest, one.size, self.heartbeat)
                server = self._begin(unpack(data), one)
            except (ValueError, KeyError, TypeError, UserError) as error:
                say(f"the snapshot of round {one.round} is not used: {first_line(error)}")
                continue
            say(f"begins at the snapshot of round {one.round}: {one.size} bytes instead of {one.saves}")
            return began_at(part, initial, one.round, server)
        return None

    def _there(self) -> bool:
        """Whether the relay answers; if not, there is time to wait for it later."""
        try:
            status(self.address, self.part.identity, self.heartbeat)
        except NotYet:
            return False
        return True

    def _begin(self, held: State, one: snapshots.Snapshot) -> State:
        """Return a snapshot's state, and keep its position. Raises ValueError unless two peers attest it."""
        members = Members.unpack(held["members"].encode())
        if not members.round == held["round"] == one.round:
            raise ValueError("it is of another round")
        judge = checks(self.part.identity)
        for peer, member in members.all.items():
            if why := judge(peer, bytes.fromhex(member.key), member.certificate.encode()):
                raise ValueError(f"it names peer {peer}, but {why}")
        head = Head(one.round, bytes.fromhex(held["head"]), b"")
        positions = Positions(self.place / "log")
        positions.write(Position(self.part.run, bytes.fromhex(held["relay"]), head, members))
        with ExitStack() as stack:
            try:
                commit = self.follow(stack, one.round).client.peek(self.wait).commit
            except RunHalted as error:
                positions.forget()
                raise ValueError(f"the log does not lead on from it: {first_line(error)}") from error
        said = {entry.peer for entry in commit.entries if entry.kind == Kind.ATTEST and entry.body == one.digest}
        if len(said) < min(2, len(members.ids())):
            positions.forget()
            raise ValueError(f"{len(said)} peers attest it")
        server: State = held["server"]
        return server

    def leave_snapshot(self, round: int, data: bytes) -> None:
        """Leave a snapshot with the relay; the run goes on without if that fails."""
        try:
            snapshots.leave(self.address, self.part.identity, round, data, self.heartbeat)
        except (UserError, RunHalted) as error:
            say(f"no snapshot of round {round} was left with the relay: {first_line(error)}")


def began_at(part: Part, initial: State, round: int, server: State) -> Checkpoint:
    """Write the rounds up to a snapshot's into the run's folder, as ones in which nobody was heard."""
    digest, none = chain.START, {"bytes_up": 0, "bytes_down": 0, "absent": [], "seconds": {}}
    for number in range(1, round + 1):
        state = server if number == round else initial
        link = Link.extend(digest, number, digests(state), {})
        digest = link.digest
        row = row_of(part.population.strategy, state, number, {}, {}, digest)
        part.folder.append(row | none | ({"snapshot": True} if number == round else {}), link)
    start = Checkpoint(round, digest, server, {part.me: {}})
    checkpoint.save(part.folder.checkpoints, start)
    return start


def address(options: argparse.Namespace, config: DictConfig, population: Population) -> str:
    """Return the relay's address. Raises UserError if the config is not for a relay."""
    if isinstance(population.strategy, Apart):
        raise UserError("--relay: takes peers=none: all peers have the same uploads, and no graph")
    return str(options.relay)


def take_part(part: Part, options: argparse.Namespace, start: Checkpoint | None, watcher: Tracker) -> None:
    """Run the rounds after `start`; `watcher` is told of each.

    If most others attest another state than this peer's, it makes its state again from the log, once.
    """
    player = Written(Player(part.population, part.me), part.folder.path / "peer" / "upload")
    try:
        _follow(part, options, start, watcher, player)
    except RunHalted as error:
        if not isinstance(error.__cause__, Diverged):
            raise
        say(f"{error.__cause__}: it is made again from the log")
        shutil.rmtree(part.folder.checkpoints)
        part.folder.rewind(0)
        player.state = {}  # its memory follows from the rounds, too, and they are trained again
        _follow(part, options, None, watcher, player)


def _follow(
    part: Part, options: argparse.Namespace, start: Checkpoint | None, watcher: Tracker, player: Written
) -> None:
    config, place = part.config, part.folder.path / "peer"
    way = Way(part, options.relay, place, options.wait, options.heartbeat, config.timeout)
    start = start or way.join()
    after = start.round if start else 0
    with ExitStack() as stack:
        relayed = way.follow(stack, after)
        following = Following(relayed, part.me, player, after, part.folder, options.attest_every, way.leave_snapshot)
        network = Leaving(following)
        security = "mutual TLS" if part.identity else "no TLS"
        say(f"peer {part.me} of run {part.run.hex()[:12]}: relay {options.relay}, {security}")
        played(part, network, part.population, start, watcher)
        if not relayed.leave():
            say("the relay has not heard that this peer leaves; it finds out by itself")
