"""The two loops, a server's and a peer's. They yield after each round; who runs them prints, logs and draws."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fedshare import chain, metrics, seeds
from fedshare.account import Account
from fedshare.chain import Link
from fedshare.errors import RunHalted
from fedshare.network import Network, Peers, Purpose
from fedshare.payload import Payload, evaluation_flaw, flaw
from fedshare.state import State, digests
from fedshare.strategy import Strategy
from fedshare.threads import one_thread


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many rounds, and who takes part in them."""

    rounds: int  # the last round
    seed: int
    clients_per_round: int | None = None  # sampled without replacement; None, or more than there are: all
    evaluate_every: int = 1  # test every client after each this many rounds, and after the last; 0: never
    evaluate_first: bool = False  # test every client before round 1, too: the ``before`` of its row
    max_examples: int = 10**9  # an upload that claims to stand for more is dropped


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
) -> Iterator[Round]:
    """Run the rounds after `start`, whose server memory is `state` and whose digest is `digest`.

    `account` knows what the model's tensors are called in the account of bytes. Raises `RunHalted` when more than half
    of a round's uploads cannot be used.
    """
    for round in range(start + 1, schedule.rounds + 1):
        everyone = network.client_ids()
        clock = _Clock()
        before = {}
        if schedule.evaluate_first and round == 1:
            before = {"before": metrics.summarise(_evaluate(strategy, network, state, 0, everyone)[0])}
            clock.lap("evaluate")
        chosen = sample(everyone, schedule.clients_per_round, schedule.seed, round)
        downloads = _downloads(strategy.download, state, chosen)
        clock.lap("download")
        answers = network.exchange(Purpose.TRAIN, round, downloads)
        clock.lap("train")
        state, uploads, dropped = _concluded(
            strategy, state, round, answers, downloads, network.absent(), schedule.max_examples
        )
        clock.lap("aggregate")
        link = Link.extend(digest, round, digests(state), network.digests())
        digest = link.digest
        clock.lap("digest")
        row = _row(strategy, state, round, uploads, dropped, digest) | before
        good, bad = ([answers[client] for client in answers.keys() & some] for some in (uploads, dropped))
        row |= account.row(good, bad, downloads.values())
        last = round == schedule.rounds
        if schedule.evaluate_every and (last or round % schedule.evaluate_every == 0):
            tested, untested = _evaluate(strategy, network, state, round, everyone)
            row |= metrics.summarise(tested) | {"untested": untested}
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
        state, uploads, dropped = _concluded(strategy, state, round, answers, downloads, {}, schedule.max_examples)
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
                row |= metrics.summarise({me: play(Purpose.EVALUATE, round, download).metrics})
            clock.lap("evaluate")
        yield Round(round, state, link, row | {"seconds": clock.laps})


def _concluded(
    strategy: Strategy,
    state: State,
    round: int,
    answers: dict[int, Payload],
    downloads: dict[int, Payload],
    absent: dict[int, str],
    max_examples: int,
) -> tuple[State, dict[int, Payload], dict[int, str]]:
    """The memory after the round, the uploads that it was made of, and why the others are not among them."""
    with one_thread():
        uploads, dropped = _usable(strategy, state, answers, downloads, max_examples)
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


def _usable(
    strategy: Strategy,
    state: State,
    answers: dict[int, Payload],
    downloads: dict[int, Payload],
    max_examples: int,
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
                reason = flaw(upload, expected, max_examples)
            except ValueError as error:
                reason = str(error)
            if reason:
                dropped[client] = reason
            else:
                usable[client] = upload
    return usable, dropped


def _evaluate(
    strategy: Strategy, network: Network, state: State, round: int, clients: list[int]
) -> tuple[dict[int, dict[str, float]], dict[str, str]]:
    """Each client's test metrics with the model it would use now; and who gave none that can be used, and why."""
    downloads = _downloads(strategy.test_download, state, clients)
    answers = network.exchange(Purpose.EVALUATE, round, downloads)
    absent = network.absent()
    flaws = {
        client: evaluation_flaw(answers[client].metrics) if client in answers else absent.get(client, "no answer")
        for client in sorted(downloads)
    }
    untested = {str(client): reason for client, reason in flaws.items() if reason}
    return {client: answers[client].metrics for client, reason in flaws.items() if not reason}, untested


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
