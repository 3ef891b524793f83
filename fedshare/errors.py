"""Errors that a person can act on: the command line prints their one line and no traceback."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed."""

    exit_code = 2


class RunHalted(UserError):
    """A run that cannot go on. The message says in which round, and why."""

    exit_code = 3


class DiskError(UserError):
    """A disk that is full, read-only or broken. The message says what is safe there, and how to go on."""

    exit_code = 3


def brief(text: str, most: int = 200) -> str:
    """What somebody else has said, fit to be shown: one line, not endless, and nothing that commands a terminal."""
    line = "".join(char if char.isprintable() else " " for char in text[: 2 * most]).strip()
    return line if len(line) <= most else line[: most - 3] + "..."


def first_line(error: BaseException) -> str:
    """What `error` says, in one line; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
