"""The two loops, a server's and a peer's. They yield after each round; who runs them prints, logs and draws."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedshare.errors import RunHalted, brief
from fedshare.machine.threads import one_thread
from fedshare.network import Heard, Network, NotAwaited, Peers, Purpose
from fedshare.payload import Payload, Quota, flaw
from fedshare.rounds import chain
from fedshare.rounds.account import Account
from fedshare.rounds.chain import Link
from fedshare.rounds.influence import Watch
from fedshare.rounds.rows import merged, row_of, row_of_test, test_flaw, told
from fedshare.rounds.schedule import Schedule, sample
from fedshare.state import State, digests
from fedshare.strategy import Strategy, weakness
from fedshare.tasks import Classification, Task


@dataclass(frozen=True)
class Round:
    """What is known when a round is over."""

    number: int
    state: State  # the server's memory
    link: Link  # of the digest chain
    row: dict[str, Any]  # the metrics, ready for JSON


def run_server(
    strategy: Strategy,
    network: Network,
    state: State,
    schedule: Schedule,
    start: int = 0,
    digest: str = chain.START,
    account: Account = Account(),  # noqa: B008  # frozen
    task: Task = Classification(),  # noqa: B008  # the same
    heard: Heard | None = None,
) -> Iterator[Round]:
    """Run the rounds after `start`, whose server memory is `state` and whose digest is `digest`.

    `account` knows what the model's tensors are called in the account of bytes, `task` what a test gives. `heard` is
    told how far each exchange is. Raises `RunHalted` when more than half of a round's uploads cannot be used, or what
    is made of them cannot.
    """
    known, watch = set(range(schedule.clients or 0)), Watch(schedule.max_norm_ratio)
    for round in range(start + 1, schedule.rounds + 1):
        here = network.client_ids()
        known |= set(here)
        clock = _Clock()
        before = {}
        if schedule.evaluate_first and round == 1:
            away = _away(known, here, {})
            before = {"before": _tested(strategy, network, state, 0, here, away, schedule, task, heard)}
            clock.lap("evaluate")
        trains = [client for client in here if client not in schedule.unseen]
        chosen = sample(trains, schedule.clients_per_round, schedule.seed, round)
        downloads = _downloads(strategy, state, chosen, Purpose.TRAIN)
        clock.lap("download")
        exchange = network.exchange(Purpose.TRAIN, round, downloads, partial(_quota, strategy, state), heard)
        answers, suspended = exchange.answers, exchange.suspended
        known |= suspended.keys()
        away = _away(known, here, suspended)
        clock.lap("train")
        state, uploads, dropped, weakened = _concluded(
            strategy, state, round, answers, downloads, exchange.absent, schedule, watch
        )
        clock.lap("aggregate")
        link = Link.extend(digest, round, digests(state), exchange.digests, dropped)
        digest = link.digest
        clock.lap("digest")
        row = row_of(strategy, state, round, uploads, dropped, digest)
        row |= {"absent": [client for client in away if client not in suspended]} | before
        row |= {"suspended": {str(client): why for client, why in suspended.items()}} if suspended else {}
        row |= told(answers, downloads, weakened)
        good, bad = ([answers[client] for client in answers.keys() & some] for some in (uploads, dropped))
        row |= account.row(good, bad, downloads.values())
        last = round == schedule.rounds
        if schedule.evaluate_every and (last or round % schedule.evaluate_every == 0):
            row = merged(row, _tested(strategy, network, state, round, here, away, schedule, task, heard))
            clock.lap("evaluate")
        yield Round(round, state, link, row | {"seconds": clock.laps})


def run_peer(
    strategy: Strategy,
    me: int,
    play: Callable[[Purpose, int, Payload], Payload],
    peers: Peers,
    state: State,
    schedule: Schedule,
    start: int = 0,
    digest: str = chain.START,
    account: Account = Account(),  # noqa: B008  # frozen
    task: Task = Classification(),  # noqa: B008  # the same
) -> Iterator[Round]:
    """The same rounds with no server: every peer keeps the server's memory, and aggregates what all have gathered.

    `play` is what peer `me` does with a download. The memory after a round is the same everywhere and the same as a
    server's. A peer tests its own model alone, and its chain of digests covers the common memory alone.
    """
    watch = Watch(schedule.max_norm_ratio)
    for round in range(start + 1, schedule.rounds + 1):
        clock = _Clock()
        chosen = sample(peers.ids(), schedule.clients_per_round, schedule.seed, round)
        downloads = _downloads(strategy, state, chosen, Purpose.TRAIN)
        clock.lap("download")
        upload = play(Purpose.TRAIN, round, downloads[me]) if me in downloads else None
        clock.lap("train")
        answers = peers.gather(round, upload)
        clock.lap("gather")
        state, uploads, dropped, weakened = _concluded(strategy, state, round, answers, downloads, {}, schedule, watch)
        clock.lap("aggregate")
        link = Link.extend(digest, round, digests(state), {})
        digest = link.digest
        clock.lap("digest")
        row = row_of(strategy, state, round, uploads, dropped, digest) | told(answers, downloads, weakened)
        mine = [upload] if upload else []
        row |= account.row(*((mine, []) if me in uploads else ([], mine)), [])
        if schedule.evaluate_every and (round == schedule.rounds or round % schedule.evaluate_every == 0):
            download = strategy.download(state, me, Purpose.EVALUATE)
            if download is not None:
                row = merged(row, row_of_test(task, {me: play(Purpose.EVALUATE, round, download)}, schedule))
            clock.lap("evaluate")
        yield Round(round, state, link, row | {"seconds": clock.laps})


def _away(known: set[int], here: list[int], suspended: dict[int, str]) -> dict[int, str]:
    """Who of the known clients is not asked, and why, in client order."""
    return {c: "suspended" if c in suspended else "not connected" for c in sorted(known - set(here))}


def _concluded(
    strategy: Strategy,
    state: State,
    round: int,
    answers: dict[int, Payload],
    downloads: dict[int, Payload],
    absent: dict[int, str],
    schedule: Schedule,
    watch: Watch,
) -> tuple[State, dict[int, Payload], dict[int, str], str | None]:
    """The memory after the round, the uploads that it was made of, why the others are not among them, and why these
    are too few for what the strategy promises.
    """
    with one_thread():
        uploads, dropped = _usable(strategy, state, answers, downloads, schedule.most)
        dropped |= {client: reason for client, reason in absent.items() if client in dropped}
        far = watch.outliers(uploads, downloads)
        uploads = {client: upload for client, upload in uploads.items() if client not in far}
        dropped = dict(sorted((dropped | far).items()))
        bad = {client: reason for client, reason in dropped.items() if not isinstance(reason, NotAwaited)}
        awaited = len(downloads) - len(dropped) + len(bad)
        if 2 * len(bad) > awaited:
            flawed = 2 * len(bad.keys() & answers.keys()) > awaited
            hint = ", so the fault is the global model's or everyone's (a smaller learning rate?)" if flawed else ""
            hint += f"; {watch.suspects}" if flawed and watch.suspects else ""
            count = f"{len(bad)} of {awaited} uploads cannot be used{hint}"
            raise RunHalted(f"round {round}: {count}: {_listing(bad)}")
        weakened = weakness(strategy, uploads)
        if weakened and schedule.halt_weakened:
            raise RunHalted(f"round {round}: {weakened}")
        if not uploads:
            return state, uploads, dropped, weakened
        after = strategy.aggregate(state, round, uploads)
        watch.check(round, state, after, uploads, downloads)
        return after, uploads, dropped, weakened


def _downloads(strategy: Strategy, state: State, clients: list[int], purpose: Purpose) -> dict[int, Payload]:
    with one_thread():
        downloads = {client: strategy.download(state, client, purpose) for client in clients}
    return {client: download for client, download in downloads.items() if download is not None}


def _quota(strategy: Strategy, state: State, client: int) -> Quota:
    return Quota.of(strategy.expects(state, client))


def _usable(
    strategy: Strategy,
    state: State,
    answers: dict[int, Payload],
    downloads: dict[int, Payload],
    most: Callable[[int], int],
) -> tuple[dict[int, Payload], dict[int, str]]:
    """The uploads that can be used, and why the others cannot, both in client order."""
    usable, dropped = {}, {}
    for client in sorted(downloads):
        if client not in answers:
            dropped[client] = "no answer"
        else:
            expected = strategy.expects(state, client)
            try:
                upload = strategy.form.decode(answers[client], expected)
                reason = flaw(upload, expected, most(client))
            except ValueError as error:
                reason = str(error)
            if reason:
                dropped[client] = brief(reason)  # which may hold names of its sender's
            else:
                usable[client] = upload
    return usable, dropped


def _tested(
    strategy: Strategy,
    network: Network,
    state: State,
    round: int,
    here: list[int],
    away: dict[int, str],
    schedule: Schedule,
    task: Task,
    heard: Heard | None,
) -> dict[str, Any]:
    """A row's part about each client's test with the model it would use now; of how many, and why not of the others.

    Who is `away`, and why, would otherwise leave the means unnoticed, and they would be others.
    """
    downloads, zeros = _downloads(strategy, state, here, Purpose.EVALUATE), task.zeros()
    quota = Quota.of({"sums": zeros, "validation": zeros})
    exchange = network.exchange(Purpose.EVALUATE, round, downloads, lambda _: quota, heard)
    answers, absent, untested = exchange.answers, exchange.absent, dict[int, str]()
    for client in sorted({*here, *away}):
        if client in away:
            untested[client] = away[client]
        elif client not in downloads:
            untested[client] = "is sent no model"
        elif client not in answers:
            untested[client] = absent.get(client, "no answer")
        elif reason := test_flaw(answers[client], task, zeros, schedule, client):
            untested[client] = brief(reason)
    good = {client: answer for client, answer in sorted(answers.items()) if client not in untested}
    counts = {"tested": len(good), "tested_of": len(here) + len(away)}
    whys = {"untested": {str(client): reason for client, reason in untested.items()}}
    return row_of_test(task, good, schedule) | counts | whys


def _listing(dropped: dict[int, str], most: int = 3) -> str:
    some = "; ".join(f"client {client}: {reason}" for client, reason in list(dropped.items())[:most])
    return some + (f"; and {len(dropped) - most} more" if len(dropped) > most else "")


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.laps[phase] = round(now - self._last, 6)
        self._last = now
