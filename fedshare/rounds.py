"""The two loops, a server's and a peer's. They yield after each round; who runs them prints, logs and draws."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fedshare import chain, metrics, seeds
from fedshare.account import Account
from fedshare.chain import Link
from fedshare.errors import RunHalted, brief
from fedshare.influence import Watch
from fedshare.network import Network, NotAwaited, Peers, Purpose
from fedshare.payload import UNKNOWN, Payload, Quota, evaluation_flaw, flaw
from fedshare.state import State, digests
from fedshare.strategy import Strategy
from fedshare.tasks import Classification, Task
from fedshare.tensors import Tensors, is_finite
from fedshare.threads import one_thread


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many rounds, and who takes part in them."""

    rounds: int  # the last round
    seed: int
    clients_per_round: int | None = None  # sampled without replacement; None, or more than there are: all
    evaluate_every: int = 1  # test every client after each this many rounds, and after the last; 0: never
    evaluate_first: bool = False  # test every client before round 1, too: the ``before`` of its row
    max_examples: int = 10**9  # an upload that claims to stand for more is dropped,
    sizes: Mapping[int, int] = field(default_factory=dict)  # or for more than what the client is known to have
    tests: Mapping[int, int] = field(default_factory=dict)  # how many test examples a client is known to have; a test
    validations: Mapping[int, int] = field(default_factory=dict)  # of more, or on more that validate, does not count
    targets: int = 1  # the most targets of an example
    clients: int | None = None  # how many there are: ids below it that the network lacks are absent; None: unknown,
    # and then those are that it had before
    unseen: tuple[int, ...] = ()  # clients that never train, and are tested as newcomers
    max_norm_ratio: float | None = None  # an update longer than so many times the round's median is dropped; None: none
    halt_weakened: bool = False  # end the run in a round whose clients are too few for what the strategy promises

    def most(self, client: int) -> int:
        """How many examples an upload of this client may stand for."""
        return self.sizes.get(client, self.max_examples)

    def most_tested(self, client: int) -> int:
        """How many targets this client's test may be on."""
        return self.tests[client] * self.targets if client in self.tests else UNKNOWN

    def most_validated(self, client: int) -> int:
        return self.validations[client] * self.targets if client in self.validations else UNKNOWN


@dataclass(frozen=True)
class Round:
    """What is known when a round is over."""

    number: int
    state: State  # the server's memory
    link: Link  # of the digest chain
    row: dict[str, Any]  # the metrics, ready for JSON


def sample(client_ids: list[int], count: int | None, seed: int, round: int) -> list[int]:
    """The clients of a round, sorted."""
    if count is None or count >= len(client_ids):
        return list(client_ids)
    order = torch.randperm(len(client_ids), generator=seeds.generator(seed, "sample", round))
    return sorted(client_ids[position] for position in order[:count].tolist())


def run_server(
    strategy: Strategy,
    network: Network,
    state: State,
    schedule: Schedule,
    start: int = 0,
    digest: str = chain.START,
    account: Account = Account(),  # noqa: B008  # frozen
    task: Task = Classification(),  # noqa: B008  # the same
) -> Iterator[Round]:
    """Run the rounds after `start`, whose server memory is `state` and whose digest is `digest`.

    `account` knows what the model's tensors are called in the account of bytes, `task` what a test gives. Raises
    `RunHalted` when more than half of a round's uploads cannot be used, or what is made of them cannot.
    """
    known, watch = set(range(schedule.clients or 0)), Watch(schedule.max_norm_ratio)
    for round in range(start + 1, schedule.rounds + 1):
        here = network.client_ids()
        suspended = network.suspended()
        known |= {*here, *suspended}
        away = {c: "suspended" if c in suspended else "not connected" for c in sorted(known - set(here))}
        clock = _Clock()
        before = {}
        if schedule.evaluate_first and round == 1:
            before = {"before": _tested(strategy, network, state, 0, here, away, schedule, task)}
            clock.lap("evaluate")
        trains = [client for client in here if client not in schedule.unseen]
        chosen = sample(trains, schedule.clients_per_round, schedule.seed, round)
        downloads = _downloads(strategy.download, state, chosen)
        clock.lap("download")
        network.allow(partial(_quota, strategy, state))
        answers = network.exchange(Purpose.TRAIN, round, downloads)
        clock.lap("train")
        state, uploads, dropped, weakness = _concluded(
            strategy, state, round, answers, downloads, network.absent(), schedule, watch
        )
        clock.lap("aggregate")
        # Not of those whose upload was dropped: what they say of themselves is anybody's, and counts for nothing.
        memories = {client: leaves for client, leaves in network.digests().items() if client not in dropped}
        link = Link.extend(digest, round, digests(state), memories)
        digest = link.digest
        clock.lap("digest")
        row = _row(strategy, state, round, uploads, dropped, digest)
        row |= {"absent": [client for client in away if client not in suspended]} | before
        row |= {"suspended": {str(client): why for client, why in suspended.items()}} if suspended else {}
        row |= _told(answers, downloads, weakness)
        good, bad = ([answers[client] for client in answers.keys() & some] for some in (uploads, dropped))
        row |= account.row(good, bad, downloads.values())
        last = round == schedule.rounds
        if schedule.evaluate_every and (last or round % schedule.evaluate_every == 0):
            row = _merged(row, _tested(strategy, network, state, round, here, away, schedule, task))
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
        downloads = _downloads(strategy.download, state, chosen)
        clock.lap("download")
        upload = play(Purpose.TRAIN, round, downloads[me]) if me in downloads else None
        clock.lap("train")
        answers = peers.gather(round, upload)
        clock.lap("gather")
        state, uploads, dropped, weakness = _concluded(strategy, state, round, answers, downloads, {}, schedule, watch)
        clock.lap("aggregate")
        link = Link.extend(digest, round, digests(state), {})
        digest = link.digest
        clock.lap("digest")
        row = _row(strategy, state, round, uploads, dropped, digest) | _told(answers, downloads, weakness)
        mine = [upload] if upload else []
        row |= account.row(*((mine, []) if me in uploads else ([], mine)), [])
        if schedule.evaluate_every and (round == schedule.rounds or round % schedule.evaluate_every == 0):
            download = strategy.test_download(state, me)
            if download is not None:
                row = _merged(row, _row_of_test(task, {me: play(Purpose.EVALUATE, round, download)}, schedule))
            clock.lap("evaluate")
        yield Round(round, state, link, row | {"seconds": clock.laps})


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
        weakness = strategy.weakness(uploads)
        if weakness and schedule.halt_weakened:
            raise RunHalted(f"round {round}: {weakness}")
        if not uploads:
            return state, uploads, dropped, weakness
        after = strategy.aggregate(state, round, uploads)
        watch.check(round, state, after, uploads, downloads)
        return after, uploads, dropped, weakness


def _row(
    strategy: Strategy,
    state: State,
    round: int,
    uploads: dict[int, Payload],
    dropped: dict[int, str],
    digest: str,
) -> dict[str, Any]:
    return (
        _averages(uploads)
        | strategy.report(state)
        | {
            "round": round,
            "clients": sorted(uploads),
            "dropped": {str(client): reason for client, reason in dropped.items()},
            "examples": int(sum(upload.metrics["examples"] for upload in uploads.values())),
            "digest": digest,
        }
    )


def _told(answers: dict[int, Payload], downloads: dict[int, Payload], weakness: str | None) -> dict[str, Any]:
    """What a row says of training that is not as it should be; nothing where all is."""
    losses = {c: answers[c].metrics.get("train_loss") for c in sorted(answers.keys() & downloads.keys())}
    odd = [client for client, loss in losses.items() if loss is not None and not is_finite(loss)]
    return ({"not_finite": {"train_loss": odd}} if odd else {}) | ({"weakened": weakness} if weakness else {})


def _merged(row: dict[str, Any], test: dict[str, Any]) -> dict[str, Any]:
    odd = row.get("not_finite", {}) | test.get("not_finite", {})
    return row | test | ({"not_finite": odd} if odd else {})


def _downloads(
    download: Callable[[State, int], Payload | None], state: State, clients: list[int]
) -> dict[int, Payload]:
    with one_thread():
        downloads = {client: download(state, client) for client in clients}
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
                upload = strategy.unpack(answers[client], expected)
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
) -> dict[str, Any]:
    """A row's part about each client's test with the model it would use now; of how many, and why not of the others.

    Who is `away`, and why, would otherwise leave the means unnoticed, and they would be others.
    """
    downloads, zeros = _downloads(strategy.test_download, state, here), task.zeros()
    quota = Quota.of({"sums": zeros, "validation": zeros})
    network.allow(lambda _: quota)
    answers = network.exchange(Purpose.EVALUATE, round, downloads)
    absent, untested = network.absent(), dict[int, str]()
    for client in sorted({*here, *away}):
        if client in away:
            untested[client] = away[client]
        elif client not in downloads:
            untested[client] = "is sent no model"
        elif client not in answers:
            untested[client] = absent.get(client, "no answer")
        elif reason := _test_flaw(answers[client], task, zeros, schedule, client):
            untested[client] = brief(reason)
    good = {client: answer for client, answer in sorted(answers.items()) if client not in untested}
    counts = {"tested": len(good), "tested_of": len(here) + len(away)}
    whys = {"untested": {str(client): reason for client, reason in untested.items()}}
    return _row_of_test(task, good, schedule) | counts | whys


def _test_flaw(answer: Payload, task: Task, zeros: Tensors, schedule: Schedule, client: int) -> str | None:
    """Why a client's test does not count."""
    most = {"sums": schedule.most_tested(client), "validation": schedule.most_validated(client)}
    if reason := evaluation_flaw(answer, zeros, most["sums"], most["validation"]):
        return reason
    reasons = {group: task.flaw(sums, most[group]) for group, sums in answer.tensors.items()}
    return next((f"{group}: {reason}" for group, reason in reasons.items() if reason), None)


def _row_of_test(task: Task, answers: dict[int, Payload], schedule: Schedule) -> dict[str, Any]:
    """The test's metrics; those of validation, and of clients that never train, are apart."""
    told = {client: answer.metrics for client, answer in answers.items()}

    def summary(group: str, unseen: bool) -> dict[str, Any]:
        sums = {
            c: a.tensors[group] for c, a in answers.items() if group in a.tensors and (c in schedule.unseen) is unseen
        }
        return metrics.summarise(task, sums, told)

    row = summary("sums", False)
    for name, found in (("validation", summary("validation", False)), ("unseen", summary("sums", True))):
        if found:
            row[name] = {key: value for key, value in found.items() if key not in ("per_client", "headline", "better")}
            diverged = found.get("not_finite", {}).get("loss", ())
            row[name]["clients"] = len(found["per_client"]["examples"]) - len(diverged)
    return row


def _averages(uploads: dict[int, Payload]) -> dict[str, float]:
    """What every upload reports (the training loss), weighted by examples; of ``max_...`` the largest.

    That need not be reported by all, but by half of them: one client's inventions are not worth a column.
    """
    reports = [upload.metrics for upload in uploads.values()]
    weights = [report["examples"] for report in reports]
    averages = {}
    for name in sorted(set().union(*reports) - {"examples"}):
        values = [report[name] for report in reports if name in report]
        if name.startswith("max_") and 2 * len(values) >= len(reports):
            averages[name] = max(values)
        elif len(values) == len(reports):
            averages[name] = metrics.weighted_mean(values, weights)
    return averages


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
