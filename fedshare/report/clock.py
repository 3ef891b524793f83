"""Lines of a log, with the time.

A line is written in one call, with its end: `print` makes two, and lines of several threads would run into each other.
"""

import sys
import time


def stamped(text: str) -> str:
    """Each line of `text` with the local time in front."""
    now = time.strftime("%Y-%m-%d %H:%M:%S ")
    return "\n".join(now + line for line in text.split("\n"))


def say(text: str) -> None:
    """Print `text` so, at once."""
    print(f"{stamped(text)}\n", end="", flush=True)


def tell(text: str) -> None:
    """The same, on the standard error."""
    print(f"{stamped(text)}\n", end="", file=sys.stderr, flush=True)
