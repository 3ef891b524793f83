"""File descriptors: how many this process may have, and whether they are enough for the clients that will connect."""

from contextlib import suppress

from fedshare.errors import UserError

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

STRANGERS = 16  # connections there must be room for beside those of all clients
UNLIMITED = 2**31 - 1  # as gRPC counts connections


def raise_limit() -> None:
    """Raise the soft limit to the hard one: many systems begin with 1024, whatever they allow."""
    if resource:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with suppress(OSError, ValueError):  # macOS has a hard limit beyond what it takes
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """How many descriptors this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
    return min(soft, UNLIMITED) if soft >= 0 else UNLIMITED  # RLIM_INFINITY is -1


def room(clients: int, reserve: int) -> int:
    """How many connections there may be when `reserve` descriptors are kept for files.

    Raises UserError where `clients` and a few strangers are more.
    """
    have, need = limit(), clients + STRANGERS + reserve
    if need > have:
        raise UserError(
            f"{clients} clients need {need} file descriptors ({reserve} for files), and the limit of this process is "
            f"{have} (RLIMIT_NOFILE, hard): `ulimit -n {2 * need}`, or LimitNOFILE={2 * need} in its systemd unit"
        )
    return have - reserve
