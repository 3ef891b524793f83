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
from fedshare.network import Network, Peers, Purpose
from fedshare.payload import Payload, Quota, evaluation_flaw, flaw
from fedshare.state import State, digests
from fedshare.strategy import Strategy
from fedshare.tasks import Classification, Task
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
    clients: int | None = None  # how many there are: ids below it that the network lacks are absent; None: unknown,
    # and then those are that it had before
    unseen: tuple[int, ...] = ()  # clients that never train, and are tested as newcomers

    def most(self, client: int) -> int:
        """How many examples an upload of this client may stand for."""
        return self.sizes.get(client, self.max_examples)


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
    `RunHalted` when more than half of a round's uploads cannot be used.
    """
    known = set(range(schedule.clients or 0))
    for round in range(start + 1, schedule.rounds + 1):
        here = network.client_ids()
        known |= set(here)
        clock = _Clock()
        before = {}
        if schedule.evaluate_first and round == 1:
            before = {"before": _tested(strategy, network, state, 0, here, known, schedule, task)}
            clock.lap("evaluate")
        trains = [client for client in here if client not in schedule.unseen]
        chosen = sample(trains, schedule.clients_per_round, schedule.seed, round)
        downloads = _downloads(strategy.download, state, chosen)
        clock.lap("download")
        network.allow(partial(_quota, strategy, state))
        answers = network.exchange(Purpose.TRAIN, round, downloads)
        clock.lap("train")
        state, uploads, dropped = _concluded(
            strategy, state, round, answers, downloads, network.absent(), schedule.most
        )
        clock.lap("aggregate")
        link = Link.extend(digest, round, digests(state), network.digests())
        digest = link.digest
        clock.lap("digest")
        row = _row(strategy, state, round, uploads, dropped, digest) | {"absent": sorted(known - set(here))} | before
        good, bad = ([answers[client] for client in answers.keys() & some] for some in (uploads, dropped))
        row |= account.row(good, bad, downloads.values())
        last = round == schedule.rounds
        if schedule.evaluate_every and (last or round % schedule.evaluate_every == 0):
            row |= _tested(strategy, network, state, round, here, known, schedule, task)
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
    for round in range(start + 1, schedule.rounds + 1):
        clock = _Clock()
        chosen = sample(peers.ids(), schedule.clients_per_round, schedule.seed, round)
        downloads = _downloads(strategy.download, state, chosen)
        clock.lap("download")
        upload = play(Purpose.TRAIN, round, downloads[me]) if me in downloads else None
        clock.lap("train")
        answers = peers.gather(round, upload)
        clock.lap("gather")
        state, uploads, dropped = _concluded(strategy, state, round, answers, downloads, {}, schedule.most)
        clock.lap("aggregate")
        link = Link.extend(digest, round, digests(state), {})
        digest = link.digest
        clock.lap("digest")
        row = _row(strategy, state, round, uploads, dropped, digest)
        mine = [upload] if upload else []
        row |= account.row(*((mine, []) if me in uploads else ([], mine)), [])
        if schedule.evaluate_every and (round == schedule.rounds or round % schedule.evaluate_every == 0):
            download = strategy.test_download(state, me)
            if download is not None:
                row |= _row_of_test(task, {me: play(Purpose.EVALUATE, round, download)}, schedule)
            clock.lap("evaluate")
        yield Round(round, state, link, row | {"seconds": clock.laps})


def _concluded(
    strategy: Strategy,
    state: State,
    round: int,
    answers: dict[int, Payload],
    downloads: dict[int, Payload],
    absent: dict[int, str],
    most: Callable[[int], int],
) -> tuple[State, dict[int, Payload], dict[int, str]]:
    """The memory after the round, the uploads that it was made of, and why the others are not among them."""
    with one_thread():
        uploads, dropped = _usable(strategy, state, answers, downloads, most)
        dropped |= {client: reason for client, reason in absent.items() if client in dropped}
        if 2 * len(dropped) > len(downloads):
            flawed = 2 * len(dropped.keys() & answers.keys()) > len(downloads)
            hint = ", so the fault is the global model's or everyone's (a smaller learning rate?)" if flawed else ""
            count = f"{len(dropped)} of {len(downloads)} uploads cannot be used{hint}"
            raise RunHalted(f"round {round}: {count}: {_listing(dropped)}")
        return strategy.aggregate(state, round, uploads) if uploads else state, uploads, dropped


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
    known: set[int],
    schedule: Schedule,
    task: Task,
) -> dict[str, Any]:
    """A row's part about each client's test with the model it would use now; of how many, and why not of the others.

    Who is away would otherwise leave the means unnoticed, and they would be others.
    """
    downloads, zeros = _downloads(strategy.test_download, state, here), task.zeros()
    quota = Quota.of({"sums": zeros, "validation": zeros})
    network.allow(lambda _: quota)
    answers = network.exchange(Purpose.EVALUATE, round, downloads)
    absent, untested = network.absent(), dict[int, str]()
    for client in sorted(known):
        if client not in here:
            untested[client] = "not connected"
        elif client not in downloads:
            untested[client] = "is sent no model"
        elif client not in answers:
            untested[client] = absent.get(client, "no answer")
        elif reason := evaluation_flaw(answers[client], zeros):
            untested[client] = brief(reason)
    good = {client: answer for client, answer in sorted(answers.items()) if client not in untested}
    counts = {"tested": len(good), "tested_of": len(known)}
    whys = {"untested": {str(client): reason for client, reason in untested.items()}}
    return _row_of_test(task, good, schedule) | counts | whys


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
            row[name]["clients"] = len(found["per_client"]["examples"])
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
