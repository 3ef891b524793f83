"""The round loop of a peer, without a server."""

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
    """Run the same rounds without a server: every peer keeps the server's memory and aggregates all uploads itself.

    `play` answers a download as peer `me`. The memory after a round is the same on every peer and equals a server's. A
    peer tests only its own model, and its digest chain covers only the common memory.
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
