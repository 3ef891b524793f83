"""Peers of `mesh_peer.py` as processes, and what must hold of what they have recorded."""

import json
import os
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import forked
from deployed import Running, eventually, free_port

PROGRAM = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import mesh_peer\n"
PROGRAM += "sys.exit(mesh_peer.main(sys.argv[1:]))"
Row = dict[str, Any]


class Peer(Running):
    def __init__(self, folder: Path, *arguments: str, **environ: str) -> None:
        self.log = folder / f"peer-{arguments[0]}-{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = forked.python(
                *("-c", PROGRAM, str(folder), *arguments),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environ,
            )

    def done(self) -> None:
        """Wait until it has ended, as it should."""
        assert self.wait() == 0, self.said
        assert "DONE" in self.said


class Meshed:
    """Peers of one run in a folder; `with` ends all that still run."""

    def __init__(self, folder: Path, count: int, rounds: int, keys: Path | None = None, *flags: str) -> None:
        self.folder, self.rounds, self.flags = folder, rounds, [*flags]
        self.ports = [str(free_port()) for _ in range(count)]
        if keys:
            self.flags += ["--keys", str(keys)]
        self.started: list[Peer] = []

    def __enter__(self) -> "Meshed":
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.started:
            if peer.process.poll() is None:
                peer.kill()

    def start(self, me: int, *flags: str, ports: list[str] | None = None, **environ: str) -> Peer:
        """`ports`: where it finds the others, if not where they are."""
        given = ",".join(ports or self.ports)
        arguments = (str(me), given, str(self.rounds), "--listen", self.ports[me], *self.flags, *flags)
        self.started.append(Peer(self.folder, *arguments, **environ))
        return self.started[-1]

    def start_all(self, *flags: str) -> list[Peer]:
        return [self.start(me, *flags) for me in range(len(self.ports))]

    def rows(self, me: int) -> list[Row]:
        path = self.folder / f"{me}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def round(self, me: int) -> int:
        rows = self.rows(me)
        return int(rows[-1]["round"]) if rows else 0

    def reach(self, me: int, round: int) -> None:
        """Wait until a peer has finished `round`."""
        what = f"round {round} of peer {me}:\n" + "".join(peer.said for peer in self.started)
        eventually(lambda: self.round(me) >= round, what)

    def meet(self, me: int, others: set[int], after: int) -> None:
        """Wait until a peer has finished a round after `after` with messages of all `others`."""

        def met() -> bool:
            late = [row for row in self.rows(me) if row["round"] > after]
            return any({int(other) for other in row["took"][-1]} == others for row in late)

        eventually(met, f"peer {me} to meet {others}:\n" + "".join(peer.said for peer in self.started))

    def events(self, me: int) -> list[tuple[int, int, str]]:
        path = self.folder / f"events-{me}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [(event["round"], event["client"], event["event"]) for event in found]

    def check(self) -> None:
        """Assert that everyone took only what was said to it, in that round, and the same as all others."""
        said: dict[tuple[int, int, int], set[str]] = defaultdict(set)
        took: dict[tuple[int, int, int], set[str]] = defaultdict(set)
        for me in range(len(self.ports)):
            rows = self.rows(me)
            numbers = [row["round"] for row in rows]
            assert numbers == sorted(set(numbers)), f"peer {me}: {numbers}"
            for row in rows:
                for step, (own, others) in enumerate(zip(row["said"], row["took"], strict=True)):
                    said[me, row["round"], step].add(own)
                    for other, digest in others.items():
                        took[int(other), row["round"], step].add(digest)
        for key, digests in took.items():
            assert len(digests) == 1, f"{key}: others took {digests}"
            if key in said:
                assert digests == said[key], f"{key}: it said {said[key]}, and others took {digests}"

    def lost(self) -> list[tuple[int, int, int]]:
        """The peer, the round and the neighbour of each message that did not come."""
        count = len(self.ports)
        found = []
        for me in range(count):
            for row in self.rows(me):
                for others in row["took"]:
                    missing = set(range(count)) - {me} - {int(other) for other in others}
                    found += [(me, row["round"], other) for other in sorted(missing)]
        return found
