"""The round loop of a server. It yields after each round; the caller prints, logs and draws."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from fedshare.errors import brief
from fedshare.machine.threads import one_thread
from fedshare.network import Heard, Network, NotAsked, Purpose
from fedshare.payload import Payload, Quota
from fedshare.rounds import chain
from fedshare.rounds.account import Account
from fedshare.rounds.chain import Link
from fedshare.rounds.influence import Watch
from fedshare.rounds.round import Clock, Round
from fedshare.rounds.rows import merged, row_of, row_of_test, test_flaw, told
from fedshare.rounds.schedule import Schedule, sample
from fedshare.rounds.steps import concluded, downloads_of
from fedshare.state import State, digests
from fedshare.strategy import Strategy, average
from fedshare.tasks import Classification, Task


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
    """Run the rounds after `start`, from the server memory `state` and the chain digest `digest`.

    `account` groups the model's tensors in the account of bytes, `task` defines the test metrics. `heard` is called
    with the progress of each exchange. Raises `RunHalted` if more than half of a round's uploads, or the aggregate,
    are unusable.
    """
    known, watch = set(range(schedule.clients or 0)), Watch(schedule.max_norm_ratio)
    here: list[int] = []
    for round in range(start + 1, schedule.rounds + 1):
        last_time, here = here, network.client_ids()
        if here is not last_time:  # a million clients that stay are not looked at one by one in each round
            known |= set(here)
        clock = Clock()
        before = {}
        if schedule.evaluate_first and round == 1:
            away = _away(known, here, {})
            before = {"before": _tested(strategy, network, state, 0, here, away, schedule, task, heard)}
            clock.lap("evaluate")
        trains = [client for client in here if client not in schedule.unseen] if schedule.unseen else here
        chosen = sample(trains, schedule.clients_per_round, schedule.seed, round)
        downloads = downloads_of(strategy, state, chosen, Purpose.TRAIN)
        clock.lap("download")
        exchange = network.exchange(Purpose.TRAIN, round, downloads, partial(_quota, strategy, state), heard)
        answers, suspended = exchange.answers, exchange.suspended
        known |= suspended.keys()
        away = _away(known, here, suspended)
        clock.lap("train")
        state, uploads, dropped, weakened = concluded(
            strategy, state, round, answers, downloads, exchange.absent, schedule, watch
        )
        clock.lap("aggregate")
        link = Link.extend(digest, round, digests(state), exchange.digests, dropped)
        digest = link.digest
        clock.lap("digest")
        row = row_of(strategy, state, round, uploads, dropped, digest)
        row |= {"absent": [client for client in away if client not in suspended]} | before
        row |= {"suspended": {str(client): why for client, why in suspended.items()}} if suspended else {}
        row |= {"events": exchange.events} if exchange.events else {}
        row |= told(answers, downloads, weakened)
        good, bad = ({client: answers[client] for client in answers.keys() & some} for some in (uploads, dropped))
        row |= account.round(round, good, bad, downloads, state)
        last = round == schedule.rounds
        if schedule.evaluate_every and (last or round % schedule.evaluate_every == 0):
            row = merged(row, _tested(strategy, network, state, round, here, away, schedule, task, heard))
            clock.lap("evaluate")
        yield Round(round, state, link, row | {"seconds": clock.laps})


def _away(known: set[int], here: list[int], suspended: dict[int, str]) -> dict[int, str]:
    """Return the known clients that are not asked, with the reason, in client order."""
    if len(known) == len(here):
        return {}
    return {c: "suspended" if c in suspended else "not connected" for c in sorted(known - set(here))}


def _quota(strategy: Strategy, state: State, client: int) -> Quota:
    return Quota.of(strategy.expects(state, client))


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
    """Return the test part of a row: each client's metrics with its current model, and why others were not tested.

    ``average`` has the metrics of the average model, if the strategy has one, on the same clients' examples. Without
    the clients in `away` the means are over other clients than before: the row must show it.
    """
    test = partial(_test, network, round, here, away, schedule, task, heard)
    downloads = downloads_of(strategy, state, here, Purpose.EVALUATE)
    row = test(downloads)
    with one_thread():
        averaged = average(strategy, downloads)
    if averaged:
        found = test(averaged)
        row["average"] = {name: found[name] for name in found.get("per_client", ()) if name in found}
    return row


def _test(
    network: Network,
    round: int,
    here: list[int],
    away: dict[int, str],
    schedule: Schedule,
    task: Task,
    heard: Heard | None,
    downloads: dict[int, Payload],
) -> dict[str, Any]:
    zeros = task.zeros()
    quota = Quota.of({"sums": zeros, "validation": zeros})
    exchange = network.exchange(Purpose.EVALUATE, round, downloads, lambda _: quota, heard)
    answers, absent, untested = exchange.answers, exchange.absent, dict[int, str]()
    asked = [client for client in here if not isinstance(absent.get(client), NotAsked)]
    for client in sorted({*asked, *away}):
        if client in away:
            untested[client] = away[client]
        elif client not in downloads:
            untested[client] = "is sent no model"
        elif client not in answers:
            untested[client] = absent.get(client, "no answer")
        elif reason := test_flaw(answers[client], task, zeros, schedule, client):
            untested[client] = brief(reason)
    good = {client: answer for client, answer in sorted(answers.items()) if client not in untested}
    counts = {"tested": len(good), "tested_of": len(asked) + len(away)}
    whys = {"untested": {str(client): reason for client, reason in untested.items()}}
    return row_of_test(task, good, schedule) | counts | whys
