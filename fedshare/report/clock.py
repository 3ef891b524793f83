"""Lines of a log, with the time."""

import sys
import time


def stamped(text: str) -> str:
    """Each line of `text` with the local time in front."""
    now = time.strftime("%Y-%m-%d %H:%M:%S ")
    return "\n".join(now + line for line in text.split("\n"))


def say(text: str) -> None:
    """Print `text` so, at once."""
    print(stamped(text), flush=True)


def tell(text: str) -> None:
    """The same, on the standard error."""
    print(stamped(text), file=sys.stderr, flush=True)
