"""`fedshare admin`: command a running server through its socket, or delete clients' memories of runs."""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedshare.errors import NAME, UserError, brief
from fedshare.experiments.options import Parser
from fedshare.transport import control

_POLL = 0.2  # seconds
_EPILOG = """examples:
  fedshare admin runs/first status
  fedshare admin runs/first suspend 3 --rounds 10
  fedshare admin runs/first ban 3 --reason "sends garbage"
  fedshare admin runs/first checkpoint --wait 600 && rsync -a runs/first backup:
  fedshare admin runs/first stop --wait 600
  fedshare admin memories --older-than 30 --delete all
"""


def admin(arguments: list[str]) -> int:
    if arguments[:1] == ["memories"]:
        from fedshare.experiments.commands.memories import memories

        return memories(arguments[1:])
    options = _parser().parse_args(arguments)
    path = Path(options.run)
    socket = path / control.NAME if path.is_dir() or not path.exists() else path
    request = {
        name: value
        for name in ("command", "client", "rounds", "reason")
        if (value := getattr(options, name, None)) is not None
    }
    answer = control.ask(socket, request)
    if options.command == "status":
        print(json.dumps(answer) if options.json else "\n".join(_status(answer)))
        return 0
    print(answer["said"])
    if getattr(options, "wait", None):
        _wait(socket, answer.get("round"), options.wait)
    return 0


def _wait(socket: Path, round: int | None, seconds: float) -> None:
    """Wait for the checkpoint of `round`, or if it is None for the end of the server. Raises UserError."""
    what = "the end of the server" if round is None else f"the checkpoint of round {round}"
    until = time.monotonic() + seconds
    while control.listens(socket):
        with suppress(UserError):  # the server may be about to end
            if round is not None and control.ask(socket, {"command": "status"})["checkpoint"] >= round:
                print(f"the checkpoint of round {round} is written")
                return
        if time.monotonic() >= until:
            raise UserError(f"{socket.parent}: waited {seconds:g} s for {what}; it is still ordered")
        time.sleep(_POLL)
    if round is not None:
        raise UserError(f"{socket.parent}: the server has ended before {what} was seen")
    print("the server has ended")


def _status(answer: dict[str, Any]) -> list[str]:
    """Format the status. Texts that come from clients are made printable."""
    if not answer["begun"]:
        where = "waiting for its clients"
    elif answer["stopping"]:
        where = f"stops after round {answer['round'] + 1}"
    else:
        where = f"{answer['round']} of {answer['rounds']} rounds done"
    saved = f"; last checkpoint: round {answer['checkpoint']}" if answer["checkpoint"] else "; no checkpoint"
    seen, connected = answer["seen"], answer["connected"]
    gone = {client: about for client, about in seen.items() if int(client) not in connected}
    lines = [f"{answer['folder']}: {where}{saved}", f"connected  {len(connected)} of {answer['clients']}: "]
    lines[-1] += ", ".join(map(str, connected)) or "none"
    sections = {
        "gone": {client: f"{about.get('gone') or 'not connected'}" for client, about in gone.items()},
        "suspended": {
            client: f"for {rounds} more rounds" if rounds else "until it is resumed"
            for client, rounds in answer["suspended"].items()
        },
        "banned": answer["banned"],
        "refused": answer["refused"],
    }
    for name, clients in sections.items():
        lines += [f"{name:<10} {client}: {brief(str(why))}".rstrip(": ") for client, why in clients.items()]
    return lines


def _client(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{brief(text, NAME)}: a client is a number, such as 3")
    return int(text)


def _rounds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise UserError(f"--rounds {brief(text, NAME)}: must be a number of rounds, at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 10**9:
        raise UserError(f"--wait {brief(text, NAME)}: must be a number of seconds, above 0")
    return value


def _parser() -> Parser:
    made = Parser(
        prog="fedshare admin",
        description="Send a command to a running server, as the user who runs it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "run", metavar="RUN", help=f"the folder of a run in progress, or its {control.NAME}; or: memories"
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="show round, checkpoint, and connected, suspended and banned clients")
    status.add_argument("--json", action="store_true", help="print JSON")
    suspend = commands.add_parser("suspend", help="send a client no messages; it stays connected")
    resume = commands.add_parser("resume", help="end a suspension")
    ban = commands.add_parser("ban", help="disconnect a client and refuse it from now on, also after --resume")
    unban = commands.add_parser("unban", help="end a ban")
    for one in (suspend, resume, ban, unban):
        one.add_argument("client", metavar="CLIENT", type=_client, help="the client's number")
    suspend.add_argument(
        "--rounds", metavar="N", type=_rounds, help="for this many rounds; default: until it is resumed"
    )
    ban.add_argument("--reason", metavar="TEXT", help="sent to the client, and recorded in the audit log")
    stop = commands.add_parser("stop", help="stop the server after this round, with a checkpoint")
    save = commands.add_parser("checkpoint", help="write a checkpoint after this round")
    for one in (stop, save):
        one.add_argument("--wait", metavar="S", type=_seconds, help="wait until this is done, for up to S seconds")
    return made
