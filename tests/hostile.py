"""A client with a valid certificate that does whatever it likes, as a process, for deploy/soak.

    python hostile.py ADDRESS KEYS ID SEED LOG

It takes part in order, and answers what it is asked with one act of `ACTS`, drawn by its seed; what it did stands in
LOG, a line each. It comes back when it is cut off, and ends only by a signal.
"""

import json
import queue
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import torch
from flwr.app import Context, Message, RecordDict

import fedshare
from fedshare._proto.payload_pb2 import Reply
from fedshare._proto.stream_pb2 import Chunk, Down, Hello, Leave, Up
from fedshare.experiments.hosts.agreement import population
from fedshare.forms import wire
from fedshare.identity.identity import Identity
from fedshare.payload import Payload
from fedshare.transport.flower import private
from fedshare.transport.flower.apps import client_app
from fedshare.transport.flower.envelope import seal, unseal
from fedshare.transport.flower.grid import arrived, node_of
from fedshare.transport.flower.inprocess import ask
from fedshare.transport.flower.records import unwrap, wrap
from fedshare.transport.stream import tls
from fedshare.transport.stream.frames import PROTOCOL, Assembly, chunks
from fedshare.transport.stream.service import METHOD

PAUSE = 0.5  # seconds until it comes back
SLOW, DRIBBLE = 3.0, 0.1  # seconds that a slow answer takes before it is broken off, and between two bytes
FLOOD = 200  # connections

Change = Callable[[Payload, random.Random], Payload]


def every(number: float) -> Change:
    def change(payload: Payload, draw: random.Random) -> Payload:
        tensors = {
            group: {name: torch.full_like(t, number) if t.is_floating_point() else t for name, t in named.items()}
            for group, named in payload.tensors.items()
        }
        return Payload(tensors, payload.metrics)

    return change


def huge_names(payload: Payload, draw: random.Random) -> Payload:
    return Payload(payload.tensors, payload.metrics | {"\n! stopped" * draw.randint(1, 20_000): 1.0})


def wrong_shapes(payload: Payload, draw: random.Random) -> Payload:
    tensors = {
        group: {name: t.reshape(-1)[: draw.randint(0, 3)].clone().unsqueeze(0) for name, t in named.items()}
        for group, named in payload.tensors.items()
    }
    return Payload(tensors, payload.metrics)


def many_examples(payload: Payload, draw: random.Random) -> Payload:
    if "sums" in payload.tensors:
        sums = payload.tensors["sums"]
        return Payload({"sums": sums | {"examples": torch.full_like(sums["examples"], 10**9)}}, payload.metrics)
    return Payload(payload.tensors, payload.metrics | {"examples": 10.0 ** draw.randint(5, 300)})


CHANGES: dict[str, Change] = {
    "NaN": every(float("nan")),
    "3e38": every(3e38),
    "huge names": huge_names,
    "wrong shapes": wrong_shapes,
    "many examples": many_examples,
}
ACTS = [*CHANGES, "slow bytes", "replay", "second greeting", "no frame", "too long", "flood", "leave"]


class Hostile:
    def __init__(self, address: str, keys: Path, id: int, seed: int, log: Path) -> None:
        self.address, self.id, self.log = address, id, log
        self.identity = Identity.load(keys / f"client-{id}")
        self.draw = random.Random(f"{seed} {id} {log.stat().st_size if log.exists() else 0}")
        self.app = client_app(population)
        self.context: Context | None = None
        self.frames: queue.SimpleQueue[Up | None] = queue.SimpleQueue()
        self.last: list[Chunk] = []  # what was answered the last time

    def note(self, act: str) -> None:
        with self.log.open("a") as log:
            log.write(json.dumps(act) + "\n")

    def live(self) -> None:
        while True:
            try:
                with tls.channel(self.address, self.identity, 10.0) as channel:
                    self.converse(channel)
            except grpc.RpcError:
                pass
            time.sleep(PAUSE)

    def converse(self, channel: grpc.Channel) -> None:
        self.frames, assembly = queue.SimpleQueue(), Assembly()
        self.frames.put(Up(hello=Hello(protocol=PROTOCOL, client=self.id, version=fedshare.__version__)))
        try:
            for frame in channel.stream_stream(METHOD, Up.SerializeToString, bytes)(self.sent(self.frames)):
                down = Down.FromString(frame)
                if down.HasField("welcome"):
                    self.enter(json.loads(down.welcome.config), down.welcome.clients)
                elif down.HasField("chunk") and (whole := assembly.add(down.chunk)):
                    self.answer(*whole)
        finally:
            self.frames.put(None)

    @staticmethod
    def sent(frames: "queue.SimpleQueue[Up | None]") -> Iterator[Up]:
        while (frame := frames.get()) is not None:
            yield frame

    def enter(self, config: dict[str, Any], clients: int) -> None:
        private.enter_run()
        node = {"partition-id": self.id, "num-partitions": clients, "state-dir": str(self.log.parent / "hostile")}
        self.context = Context(1, node_of(self.id), node, RecordDict(), config)

    def answer(self, number: int, body: bytearray) -> None:
        letter = unseal(body)
        assert self.context is not None
        assert letter.content is not None
        said = ask(self.app, arrived(node_of(self.id), "", letter.type, letter.group, letter.content), self.context)
        if letter.type not in ("train", "evaluate") or said.has_error():
            self.send(number, seal(said))
            return
        act = self.draw.choice(ACTS)
        self.note(act)
        self.act(act, number, said)

    def act(self, act: str, number: int, said: Message) -> None:
        if act == "replay":  # of an answer that was taken, and of one that was not as the answer to this
            for chunk in self.last:
                self.frames.put(Up(chunk=chunk))
        elif act == "second greeting":
            self.frames.put(Up(hello=Hello(protocol=PROTOCOL, client=self.id, version=fedshare.__version__)))
            return
        elif act == "no frame":
            self.frames.put(Up())
            return
        elif act == "too long":
            self.frames.put(Up(chunk=Chunk(message=number, size=1 << 40, data=b"x")))
            return
        elif act == "leave":
            self.frames.put(Up(leave=Leave()))
            return
        elif act == "slow bytes":
            until, size = time.monotonic() + SLOW, 1000
            while time.monotonic() < until:
                self.frames.put(Up(chunk=Chunk(message=number, size=size, data=b"x")))
                size = 0
                time.sleep(DRIBBLE)
            self.frames.put(Up(leave=Leave()))
            return
        elif act == "flood":
            self.flood()
        change = CHANGES.get(act) or CHANGES[self.draw.choice(["NaN", "wrong shapes"])]
        self.send(number, self.changed(said, change))

    def changed(self, said: Message, change: Change) -> Sequence[Any]:
        head, tensors = unwrap(said.content)
        reply = Reply.FromString(head)
        upload, data = wire.pack(change(wire.unpack(reply.upload, tensors), self.draw))
        reply.upload.CopyFrom(upload)
        told = said.metadata
        return seal(private.received(told, wrap(reply.SerializeToString(), data), None))

    def send(self, number: int, buffers: Sequence[Any]) -> None:
        self.last = list(chunks(number, buffers))
        for chunk in self.last:
            self.frames.put(Up(chunk=chunk))

    def flood(self) -> None:
        host, _, port = self.address.rpartition(":")
        made = []
        try:
            for _ in range(FLOOD):
                made.append(socket.create_connection((host, int(port)), 5))
        except OSError:
            pass
        for one in made:
            one.close()


if __name__ == "__main__":
    address, keys, id, seed, log = sys.argv[1:]
    Hostile(address, Path(keys), int(id), int(seed), Path(log)).live()
