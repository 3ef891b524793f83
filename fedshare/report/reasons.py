"""Classes of the reasons why a client did not take part or was refused, for use as labels of metrics.

The reasons themselves name clients, numbers and files, some are a client's own words, and would be too many.
"""

import re

_FAILURES = {
    "raised": r"^raised ",
    "late": r"^(no answer|late:)",
    "suspended": r"^suspended$",
    "away": r"^(not connected|gone since|it left|Node Unavailable)",
    "disk": r"cannot be written:",
    "memory": r"\bmemory\b",
    "unusable": r"NaN|has shape|is torch\.|claims |^metric |lacks |has unknown|, not |not to be read|^sent |^it sent ",
}
_REFUSALS = {
    "handshake": r"^the (TLS handshake failed|connection ended)",
    "banned": r"the operator has banned",
    "certificate": r"its certificate is|certificate must name|has no certificate",
    "version": r"it runs fedshare",
    "config": r"its config ",
    "weights": r"it starts from",
    "model": r"initial model",
    "data": r"(training|test|validation) examples",
    "client": r"there are \d+|it says that it is client",
    "malformed": r" sent ",
}
FAILURES, REFUSALS = ((*known, "other") for known in (_FAILURES, _REFUSALS))


def failure(reason: str) -> str:
    """Return the class of the reason why a client was dropped from a round, or not tested in it."""
    return _first(_FAILURES, reason)


def refusal(reason: str) -> str:
    """Return the class of the reason why a client was not admitted, or does not take part."""
    return _first(_REFUSALS, reason)


def _first(known: dict[str, str], reason: str) -> str:
    return next((name for name, pattern in known.items() if re.search(pattern, reason)), "other")
