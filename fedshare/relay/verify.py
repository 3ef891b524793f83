"""A log checked from its first entry to its last: the chain, and all signatures."""

from collections.abc import Callable

from fedshare.errors import UserError
from fedshare.identity.signing import PUBLIC, RUN, Verifier
from fedshare.relay import commits
from fedshare.relay.entries import SAID, Kind
from fedshare.relay.members import Members
from fedshare.relay.store import Store


class Checked:
    """What a log holds: its run, the relay's public key, its members, and how many entries."""

    def __init__(self) -> None:
        self.run, self.key = b"", b""
        self.members = Members()
        self.head = b""
        self.entries = 0


def check(store: Store, signatures: bool = True, passed: Callable[[int], None] = lambda round: None) -> Checked:
    """Return what a log holds. Raises UserError that names the first damaged commit and entry.

    `signatures`: check those of the peers, too. `passed` is called with each round.
    """
    found = Checked()
    for commit in store.commits(0):
        where = f"{store.name}: round {commit.round}"
        if commit.round == 0:
            if not commit.entries or commit.entries[0].kind != Kind.MANIFEST:
                raise UserError(f"{where}: is damaged: it must begin with the manifest")
            body = commit.entries[0].body
            found.run, found.key = body[:RUN], body[RUN : RUN + PUBLIC]
            found.head = commits.start(found.run)
        before, found.head = found.head, commit.head(found.head)
        if (stored := store.head(commit.round)) is None or stored.head != found.head:
            raise UserError(f"{where}: is damaged: its entries are not those that were committed")
        if not stored.holds(Verifier(found.key), found.run):
            raise UserError(f"{where}: is damaged: the relay has not signed its head")
        for entry in commit.entries if signatures else ():
            member = found.members.all.get(entry.peer)
            if entry.kind in SAID and not (
                member and Verifier(bytes.fromhex(member.key)).accepts(entry.signed(found.run, before), entry.signature)
            ):
                raise UserError(f"{where}: peer {entry.peer} has not signed its entry {entry.number}")
        try:
            found.members.apply(commit)
        except ValueError as error:
            raise UserError(f"{where}: is damaged: {error}") from error
        found.entries += len(commit.entries)
        passed(commit.round)
    last = store.last
    if last is not None and last.round != found.members.round:
        raise UserError(f"{store.name}: is damaged: round {found.members.round + 1} is missing, up to {last.round}")
    return found
