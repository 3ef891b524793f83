"""Errors that a person can act on: the command line prints their one line and no traceback."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what is allowed."""

    exit_code = 2


class RunHalted(UserError):
    """A run that cannot go on. The message says in which round, and why."""

    exit_code = 3
