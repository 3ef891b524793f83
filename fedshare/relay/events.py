"""Who took part in which round, from a log, as the events of `links=file` (docs/links.md)."""

import json
from collections.abc import Iterable

from fedshare.relay.commits import Commit
from fedshare.relay.entries import Kind
from fedshare.relay.members import Members


def events(commits: Iterable[Commit], clients: int) -> list[str]:
    """Return lines of JSON with which a simulation of `clients` has the same uploads in every round."""
    members, found = Members(), list[tuple[int, int, str]]()
    here, joined, last = set[int](), set[int](), 0
    for commit in commits:
        round, ids = commit.round, set(members.ids())
        spoke = {one.peer for one in commit.entries if one.kind == Kind.MESSAGE}
        left = {one.peer for one in commit.entries if one.kind == Kind.LEAVE}
        # A peer that comes and says nothing in its first round is as if it came later.
        took = {peer for peer in ids if peer in here or peer in spoke}
        for peer in sorted(here - took):  # removed
            found.append((round, peer, "leave"))
        for peer in sorted(took):
            if peer not in here and (round > 1 or peer in joined):
                found.append((round, peer, "rejoin" if peer in joined else "join"))
            elif peer not in spoke:
                found.append((round, peer, "leave" if peer in left else "crash"))
        joined |= took
        here = took & spoke
        last = round
        members.apply(commit)
    found += [(last + 1, peer, "join") for peer in range(clients) if peer not in joined]
    keys = "round", "client", "event"
    return [json.dumps(dict(zip(keys, one, strict=True))) for one in found]
