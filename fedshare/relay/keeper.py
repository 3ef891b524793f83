"""The thread that writes a log: it takes what peers say in batches, one transaction and one fsync for each."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedshare.errors import RunHalted, UserError, first_line
from fedshare.identity.signing import RUN, Signer
from fedshare.machine.failpoints import failpoint
from fedshare.relay import commits
from fedshare.relay.commits import Commit, Head
from fedshare.relay.database import Fenced, Full
from fedshare.relay.entries import RELAY, Entry, Kind, manifest
from fedshare.relay.sequencer import Sequencer, Settings, Status, Verdict
from fedshare.relay.store import Store
from fedshare.relay.verify import check

BATCH = 512  # entries in a transaction
QUEUE = 4096  # entries that wait for one
FAILURES = 3  # in a row, after which the relay gives up
_PAUSE = 1.0  # seconds until a full disk is tried again


@dataclass(frozen=True)
class Asked:
    """Something to be done in the next transaction. `done` is called, in any thread, when it is on disk or refused."""

    act: Callable[[Sequencer], tuple[Verdict, Sequence[Entry]]]  # returns the entries to be stored, too
    done: Callable[[Verdict], None]
    write: Callable[[Store], None] | None = None  # done in the transaction, too


class Keeper:
    """Begins with `start`, ends with `close`. `room` returns why nothing more may be stored, or None.

    `run`: the only one that a new log is for. `on_commit` is called in this thread with each new commit and its head,
    `on_trouble` with why it takes nothing, or None if it does again, and `on_halt` with the error that has ended it.
    """

    def __init__(
        self,
        store: Store,
        signer: Signer,
        settings: Settings,
        room: Callable[[], str | None] = lambda: None,
        say: Callable[[str], None] = print,
        run: bytes = b"",
    ) -> None:
        self._pinned = run
        self.store, self.settings = store, settings
        self._signer, self._room, self._say = signer, room, say
        found = check(store, signatures=False)
        if found.key and found.key != signer.public:
            raise UserError(f"{store.name}: another relay's key has begun this log; peers would refuse ours")
        self.sequencer = Sequencer(found.run, found.members, settings, self._head_of, store.said)
        self._head = found.head
        self._heads = dict[int, bytes]()  # of the last rounds
        self._noted = store.noted(RELAY)
        self.sequencer.restore(store.pending(), self._noted)
        self._queue: queue.Queue[Asked | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._began: float | None = None  # when the first message of the open round came
        self.on_commit: Callable[[Commit, Head], None] = lambda commit, head: None
        self.on_trouble: Callable[[str | None], None] = lambda why: None
        self.on_halt: Callable[[BaseException], None] = lambda error: None
        self._trouble: str | None = None
        self._fence = self.sequencer.members.round >= 0

    @property
    def last(self) -> Head | None:
        return self.store.last

    @property
    def run(self) -> bytes:
        return self.sequencer.run

    @property
    def public(self) -> bytes:
        """The relay's public signing key."""
        return self._signer.public

    def status(self, rounds: int, head: bytes, nonce: bytes) -> bytes:
        """Return the relay's signature under where its log ends."""
        return self._signer.sign(commits.status_part(self.run, rounds, head, nonce))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what was asked for before this, and end."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(30)
        self.store.close()

    # Asking, in any thread.

    def say(self, entry: Entry, done: Callable[[Verdict], None]) -> None:
        """Take what a peer says."""

        def act(sequencer: Sequencer) -> tuple[Verdict, Sequence[Entry]]:
            verdict = sequencer.check(entry)
            if verdict.status is Status.TAKEN:
                return verdict, [entry]
            if verdict.status is Status.TWO_THINGS and (removal := sequencer.removal(entry.peer, verdict.why, entry)):
                self._say(f"{verdict.why}: it is removed, and the log holds both")
                return verdict, [removal]
            return verdict, []

        self._ask(Asked(act, done))

    def admit(self, run: bytes, peer: int, key: bytes, certificate: bytes, done: Callable[[Verdict], None]) -> None:
        """Admit a peer, unless it is admitted. The first one of a new log names the run."""

        def act(sequencer: Sequencer) -> tuple[Verdict, Sequence[Entry]]:
            if self._pinned in (b"", run) and not sequencer.run:
                sequencer.put(manifest(run, self._signer.public))
            if sequencer.run != run:
                theirs = (sequencer.run or self._pinned).hex()[:12]
                why = f"it is of run {run.hex()[:12]}, the log of run {theirs}"
                return Verdict(Status.REFUSED, why), []
            try:
                entry = sequencer.admission(peer, key, certificate)
            except ValueError as error:
                return Verdict(Status.REFUSED, str(error)), []
            return Verdict(Status.TAKEN), [entry] if entry else []

        self._ask(Asked(act, done))

    def remove(self, peer: int, reason: str, done: Callable[[Verdict], None]) -> None:
        def act(sequencer: Sequencer) -> tuple[Verdict, Sequence[Entry]]:
            entry = sequencer.removal(peer, reason)
            return Verdict(Status.TAKEN if entry else Status.KNOWN), [entry] if entry else []

        self._ask(Asked(act, done))

    def write(self, act: Callable[[Store], None], done: Callable[[Verdict], None]) -> None:
        """Let `act` write something beside the log."""
        self._ask(Asked(lambda sequencer: (Verdict(Status.TAKEN), []), done, act))

    def _ask(self, asked: Asked) -> None:
        if trouble := self._trouble:
            asked.done(Verdict(Status.FULL, trouble))
            return
        try:
            self._queue.put_nowait(asked)
        except queue.Full:
            asked.done(Verdict(Status.FULL, f"{QUEUE} messages wait to be stored"))

    # In the thread.

    def _run(self) -> None:
        failures = 0
        while True:
            batch, ends = self._collect()
            try:
                self._write(batch)
                failures = 0
            except Fenced as error:
                self._refuse(batch, str(error))
                self.on_halt(error)
                return
            except Full as error:
                self._refuse(batch, str(error))
                self._recover(str(error))
            except BaseException as error:  # one bad entry must not end the log
                failures += 1
                self._say(f"the log could not be written: {first_line(error)}")
                if failures >= FAILURES or isinstance(error, RunHalted | UserError):
                    self._refuse(batch, first_line(error))
                    self.on_halt(error)
                    return
                self._recover(None)
                self._one_by_one(batch)
            if ends:
                return

    def _collect(self) -> tuple[list[Asked], bool]:
        """Wait for something to do, and return it, and whether it is the last."""
        batch = list[Asked]()
        try:
            asked = self._queue.get(timeout=self._patience())
            while asked is not None:
                batch.append(asked)
                if len(batch) >= BATCH:
                    return batch, False
                asked = self._queue.get_nowait()
            return batch, True
        except queue.Empty:
            return batch, False

    def _patience(self) -> float:
        """Seconds until the open round may be over."""
        if self._trouble is not None or self._began is None:
            return _PAUSE
        return min(_PAUSE, max(0.01, self._began + self.settings.round_seconds - time.monotonic()))

    def _write(self, batch: Sequence[Asked]) -> None:
        """Store what is taken, end the round if it is over, and answer."""
        why = self._room()
        if why is None and self._trouble is not None:
            with self.store.writing():
                self.store.fenced()  # writes a little, and so tells whether it is over
        if why != self._trouble:
            self._trouble = why
            self.on_trouble(why)
        if why is not None:
            self._refuse(batch, why)
            return
        before, answers = len(self.sequencer.pending), list[tuple[Asked, Verdict]]()
        if self._fence:
            number, epoch = self.sequencer.noted + 1, b"%d" % self.store.epoch
            self.sequencer.put(Entry(Kind.FENCE, RELAY, number, self.sequencer.round, epoch))
        for asked in batch:
            verdict, new = self._judged(asked)
            for entry in new:
                self.sequencer.put(entry)
            answers.append((asked, verdict))
        fresh = self.sequencer.pending[before:]
        if fresh and self._began is None and self.sequencer.present():
            self._began = time.monotonic()
        late = self._began is not None and time.monotonic() >= self._began + self.settings.round_seconds
        commit = self.sequencer.closing(self.store.epoch) if self.sequencer.complete(late) else None
        head = None
        writes = [asked.write for asked in batch if asked.write]
        if fresh or commit or writes:
            with self.store.writing():
                self.store.fenced()
                if fresh:
                    self.store.append(fresh)
                for write in writes:
                    write(self.store)
                if commit:
                    start = self._head or commits.start(self.sequencer.run)
                    head = Head.signed(self._signer, self.sequencer.run, commit.round, commit.head(start))
                    self.store.commit(commit, head)
                failpoint("relay before fsync")
            failpoint("relay after fsync")
            self._fence = False
        if commit and head:
            self._closed(commit, head)
        for asked, verdict in answers:
            asked.done(verdict)

    def _closed(self, commit: Commit, head: Head) -> None:
        self.sequencer.closed(commit)
        self.store.committed(head)
        self._head, self._began = head.head, None
        self._heads[commit.round] = head.head
        self._heads.pop(commit.round - 64, None)
        self.on_commit(commit, head)
        failpoint("relay after commit")

    def _judged(self, asked: Asked) -> tuple[Verdict, Sequence[Entry]]:
        try:
            return asked.act(self.sequencer)
        except Full:
            raise
        except Exception as error:
            self._say(f"a message could not be checked: {first_line(error)}")
            return Verdict(Status.REFUSED, "it could not be checked"), []

    def _one_by_one(self, batch: Sequence[Asked]) -> None:
        for asked in batch:
            try:
                self._write([asked])
            except Exception as error:
                self._recover(None)
                asked.done(Verdict(Status.REFUSED, f"it could not be stored: {first_line(error)}"))

    def _recover(self, trouble: str | None) -> None:
        """Go back to what is stored."""
        if trouble is not None:
            self._trouble = trouble
            self.on_trouble(trouble)
            time.sleep(min(_PAUSE, 0.2))
        try:
            self.store.reset()
            self.sequencer.restore(self.store.pending(), self.store.noted(RELAY))
        except Full:
            pass  # the next transaction fails, too, and comes back here

    def _refuse(self, batch: Sequence[Asked], why: str) -> None:
        for asked in batch:
            asked.done(Verdict(Status.FULL, why))

    def _head_of(self, round: int) -> bytes:
        if round in self._heads:
            return self._heads[round]
        found = self.store.head(round)
        assert found is not None, f"round {round} has no head"
        return found.head


def run_of(text: str) -> bytes:
    """Return a run's name from its hex form. Raises UserError."""
    try:
        run = bytes.fromhex(text)
    except ValueError:
        run = b""
    if len(run) != RUN:
        raise UserError(f"--run {text[:80]}: must be the 64 hex digits that a peer prints as its run")
    return run
