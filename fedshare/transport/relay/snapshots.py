"""States that peers leave with the relay, for those who join: opaque, and usable once others attest their digest."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import grpc

from fedshare._proto.relay_pb2 import Piece, SnapshotName, SnapshotStored
from fedshare.errors import UserError, brief, first_line
from fedshare.identity.identity import Identity
from fedshare.relay.keeper import Keeper
from fedshare.transport.relay.protocol import FETCH, STORE, pieces
from fedshare.transport.relay.status import status
from fedshare.transport.relay.tail import Tail
from fedshare.transport.stream import tls
from fedshare.transport.stream.frames import CHUNK, FrameError, parse

LARGEST = 4 << 30  # bytes of a snapshot
SLOWEST = 30.0  # seconds between two pieces
PATIENCE = 3600.0  # seconds for a snapshot, either way


@dataclass(frozen=True)
class Snapshot:
    """A state that a relay holds: after which round, its SHA-256, its bytes, and those of the commits up to it."""

    round: int
    digest: bytes
    size: int
    saves: int


class Snapshots:
    """`who` returns who calls, -1 without TLS, None if it was removed."""

    def __init__(self, keeper: Keeper, tail: Tail, who: Callable[[grpc.aio.ServicerContext], int | None]) -> None:
        self._keeper, self._tail, self._who = keeper, tail, who
        self._storing = set[tuple[int, bytes]]()

    async def fetch(self, frame: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        if self._who(context) is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "for peers of the run")
        try:
            name = parse(SnapshotName, frame)
        except FrameError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        part = 0
        while data := await self._tail.read(lambda store, at=part: store.part(name.round, name.digest, at)):
            yield Piece(of=name.round, size=0 if part else name.size, data=data).SerializeToString()
            part += 1
        if not part:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no snapshot of round {name.round} with this digest")

    async def store(self, frames: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        if self._who(context) is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "for peers of the run")
        try:
            refusal = await self._stored(context)
        except FrameError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return SnapshotStored(refusal=refusal).SerializeToString()

    async def _stored(self, context: grpc.aio.ServicerContext) -> str:
        first = await self._piece(context)
        if first is None or not first.HasField("snapshot") or len(first.snapshot.digest) != 32:
            raise FrameError("a snapshot without a name")
        name = first.snapshot
        if not 0 < name.size <= LARGEST or name.round > 2**62:
            raise FrameError(f"a snapshot of {name.size} bytes; 1 to {LARGEST} are taken")
        key = name.round, name.digest
        if key in self._storing:
            return "another peer is storing it"
        self._storing.add(key)
        try:
            return await self._receive(name, first, context)
        finally:
            self._storing.discard(key)

    async def _receive(self, name: SnapshotName, first: Piece, context: grpc.aio.ServicerContext) -> str:
        if await self._tail.read(lambda store: store.stored(name.round, name.digest)):
            return ""
        summed, size, part, piece = hashlib.sha256(), 0, 0, first
        await self._write(lambda store: store.drop(name.round, name.digest))
        while piece is not None and size < name.size:
            data = piece.data
            size += len(data)
            if not data or len(data) > CHUNK or size > name.size:
                raise FrameError("a snapshot of another size than announced")
            summed.update(data)
            at = part
            if why := await self._write(lambda store: store.put_part(name.round, name.digest, at, data)):  # noqa: B023
                return why
            part += 1
            if size < name.size:
                piece = await self._piece(context)  # type: ignore[assignment]
        if size != name.size or summed.digest() != name.digest:
            await self._write(lambda store: store.drop(name.round, name.digest))
            return "its bytes are not those of its digest"
        return await self._write(lambda store: store.keep(name.round, name.digest))

    async def _piece(self, context: grpc.aio.ServicerContext) -> Piece | None:
        try:
            frame = await asyncio.wait_for(context.read(), SLOWEST)
        except TimeoutError:
            raise FrameError(f"no piece of a snapshot for {SLOWEST:g} s") from None
        return None if frame is grpc.aio.EOF else parse(Piece, frame)

    async def _write(self, act):  # type: ignore[no-untyped-def]
        """Let the log's thread do this; return why it could not."""
        loop = asyncio.get_running_loop()
        verdict = loop.create_future()

        def done(found) -> None:  # type: ignore[no-untyped-def]
            loop.call_soon_threadsafe(lambda: None if verdict.done() else verdict.set_result(found))

        self._keeper.write(act, done)
        return (await verdict).why


def offered(address: str, identity: Identity | None, deadline: float) -> list[Snapshot]:
    """Return the snapshots that are worth their bytes, the best last. Raises UserError."""
    found = list[Snapshot]()
    said = status(address, identity, deadline)
    try:
        for one in said["snapshots"]:
            held = Snapshot(int(one["round"]), bytes.fromhex(one["digest"]), int(one["size"]), int(one["saves"]))
            if held.size < held.saves and held.round + 1 < int(said["rounds"]):
                found.append(held)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{address}: the relay names no snapshots: {first_line(error)}") from None
    return found


def leave(address: str, identity: Identity | None, round: int, data: bytes, heartbeat: float) -> None:
    """Leave a state with the relay. Raises UserError with why it does not take it."""
    name = SnapshotName(round=round, digest=hashlib.sha256(data).digest(), size=len(data))

    def frames() -> Iterator[Piece]:
        for piece in pieces(round, data):
            if piece.size:
                piece.snapshot.CopyFrom(name)
            yield piece

    with tls.channel(address, identity, heartbeat) as channel:
        call = channel.stream_unary(STORE, Piece.SerializeToString, SnapshotStored.FromString)
        try:
            refusal = call(frames(), timeout=PATIENCE).refusal
        except grpc.RpcError as error:
            raise UserError(f"{address}: {brief(error.details() or error.code().name)}") from None
    if refusal:
        raise UserError(f"{address}: {brief(refusal)}")


def fetch(address: str, identity: Identity | None, round: int, digest: bytes, size: int, heartbeat: float) -> bytes:
    """Return a state that was left with the relay. Raises UserError if it has other bytes than its digest."""
    found = bytearray()
    with tls.channel(address, identity, heartbeat) as channel:
        call = channel.unary_stream(FETCH, SnapshotName.SerializeToString, Piece.FromString)
        try:
            for piece in call(SnapshotName(round=round, digest=digest, size=size), timeout=PATIENCE):
                found += piece.data
                if len(found) > size:
                    break
        except grpc.RpcError as error:
            raise UserError(f"{address}: {brief(error.details() or error.code().name)}") from None
    if hashlib.sha256(found).digest() != digest:
        raise UserError(f"{address}: the snapshot of round {round} has other bytes than its digest says")
    return bytes(found)
