"""Who joined, left, crashed and came back, by round, as one peer saw it: the file format of docs/links.md."""

import json
from collections.abc import Collection
from pathlib import Path

from fedshare.machine.files import append


class Events:
    """Appends to `path`, unless that is None. A neighbour's events of a round are known when that is over."""

    def __init__(self, me: int, path: Path | None) -> None:
        self.all: list[dict[str, int | str]] = []
        self._me, self._path = me, path
        self._seen = set[int]()  # peers that have taken part at any time
        self._there = set[int]()  # those that take part
        self._heard = set[int]()  # whose messages of this round were taken
        self._leaving = dict[int, int]()  # by peer: its last round
        self._first = 0  # the round in which this peer began
        if path and path.exists():
            self.all = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            self._seen = {int(event["client"]) for event in self.all}

    def resume(self, neighbours: Collection[int], first: bool) -> None:
        """Go on after a restart, with these neighbours taking part; `first`: in the round in which this peer began."""
        self._there = set(neighbours)
        self._seen |= self._there
        self._first = 0 if first else -1

    def heard(self, peer: int) -> None:
        """Note that a message of this round came from `peer`."""
        self._heard.add(peer)

    def begin_round(self, round: int, before: int, asked: int, neighbours: Collection[int]) -> None:
        """Note the links that are open in a round."""
        if self._first == 0:
            self._first = round
            self._there = set(neighbours)
            self._seen |= self._there
            if round > asked:
                self._note(round, self._me, "rejoin" if self._me in self._seen else "join")
        elif round > before + 1:
            self._note(before + 1, self._me, "leave")
            self._note(round, self._me, "rejoin")
        self._seen.add(self._me)

    def end_round(self, round: int, neighbours: Collection[int]) -> None:
        """Note what became of the neighbours in a round, given those whose links are open at its end."""
        for peer, last in sorted(self._leaving.items()):
            if last <= round and peer in self._there:
                self._note(last + 1, peer, "leave")
                self._there.discard(peer)
                self._heard.discard(peer)
        self._leaving = {peer: last for peer, last in self._leaving.items() if last > round}
        for peer in sorted(self._there - set(neighbours)):
            self._note(round, peer, "crash")
            self._there.discard(peer)
        for peer in sorted(self._heard.intersection(neighbours) - self._there):
            self._note(round, peer, "rejoin" if peer in self._seen else "join")
            self._there.add(peer)
            self._seen.add(peer)
        self._heard.clear()

    def left(self, peer: int, round: int) -> None:
        """Note that `round` is the last one of a neighbour."""
        self._leaving[peer] = round

    def leave(self, round: int) -> None:
        """Note that `round` was this peer's last one."""
        self._note(round + 1, self._me, "leave")

    def _note(self, round: int, client: int, event: str) -> None:
        self.all.append({"round": round, "client": client, "event": event})
        if self._path:
            append(self._path, (json.dumps(self.all[-1]) + "\n").encode())
