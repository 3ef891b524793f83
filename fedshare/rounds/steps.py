"""The steps of a round that a server and a peer share: making the downloads and aggregating the answers."""

from collections.abc import Callable

from fedshare.errors import RunHalted, brief
from fedshare.machine.threads import one_thread
from fedshare.network import NotAwaited, Purpose
from fedshare.payload import Payload, flaw
from fedshare.rounds.influence import Watch
from fedshare.rounds.schedule import Schedule
from fedshare.state import State
from fedshare.strategy import Strategy, weakness
from fedshare.tensors import Tensors, all_finite


def downloads_of(strategy: Strategy, state: State, clients: list[int], purpose: Purpose) -> dict[int, Payload]:
    with one_thread():
        downloads = {client: strategy.download(state, client, purpose) for client in clients}
    return {client: download for client, download in downloads.items() if download is not None}


def concluded(
    strategy: Strategy,
    state: State,
    round: int,
    answers: dict[int, Payload],
    downloads: dict[int, Payload],
    absent: dict[int, str],
    schedule: Schedule,
    watch: Watch,
) -> tuple[State, dict[int, Payload], dict[int, str], str | None]:
    """Return the memory after the round, the uploads used for it, why others were dropped, and why those used are too
    few for the strategy's guarantee.
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


def _usable(
    strategy: Strategy,
    state: State,
    answers: dict[int, Payload],
    downloads: dict[int, Payload],
    most: Callable[[int], int],
) -> tuple[dict[int, Payload], dict[int, str]]:
    """Return the usable uploads, and why the others are not usable, both in client order."""
    expected, decoded, reasons = dict[int, dict[str, Tensors]](), dict[int, Payload](), dict[int, str | None]()
    for client in sorted(downloads):
        if client not in answers:
            reasons[client] = "no answer"
            continue
        expected[client] = strategy.expects(state, client)
        try:
            decoded[client] = strategy.form.decode(answers[client], expected[client])
        except ValueError as error:
            reasons[client] = str(error)
    for client, upload in decoded.items():
        reasons[client] = flaw(upload, expected[client], most(client), finite=False)
    sound = [upload for client, upload in decoded.items() if not reasons[client]]
    # The numbers of all uploads are checked at once, which is much faster, and one by one only if some are not finite.
    whole = all_finite(t for upload in sound for tensors in upload.tensors.values() for t in tensors.values())
    for client, upload in decoded.items():
        if reasons[client] or not whole:
            reasons[client] = flaw(upload, expected[client], most(client))
    usable = {client: upload for client, upload in decoded.items() if not reasons[client]}
    # A reason may contain names chosen by the sender.
    return usable, {client: brief(reason) for client, reason in sorted(reasons.items()) if reason}


def _listing(dropped: dict[int, str], most: int = 3) -> str:
    some = "; ".join(f"client {client}: {reason}" for client, reason in list(dropped.items())[:most])
    return some + (f"; and {len(dropped) - most} more" if len(dropped) > most else "")
