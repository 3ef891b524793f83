"""A peer's loop, which is the server's without a server."""

from collections.abc import Callable, Iterator

from fedshare.network import Peers, Purpose
from fedshare.payload import Payload
from fedshare.rounds import chain
from fedshare.rounds.account import Account
from fedshare.rounds.chain import Link
from fedshare.rounds.influence import Watch
from fedshare.rounds.round import Clock, Round
from fedshare.rounds.rows import merged, row_of, row_of_test, told
from fedshare.rounds.schedule import Schedule, sample
from fedshare.rounds.steps import concluded, downloads_of
from fedshare.state import State, digests
from fedshare.strategy import Strategy
from fedshare.tasks import Classification, Task


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
        clock = Clock()
        chosen = sample(peers.ids(), schedule.clients_per_round, schedule.seed, round)
        downloads = downloads_of(strategy, state, chosen, Purpose.TRAIN)
        clock.lap("download")
        upload = play(Purpose.TRAIN, round, downloads[me]) if me in downloads else None
        clock.lap("train")
        answers = peers.gather(round, upload)
        clock.lap("gather")
        state, uploads, dropped, weakened = concluded(strategy, state, round, answers, downloads, {}, schedule, watch)
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
