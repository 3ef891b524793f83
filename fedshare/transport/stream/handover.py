"""What a gate tells the server of a run about a caller, in the metadata of the call that it makes for it.

A server believes it only on its Unix socket, which only processes of its user can reach. At a port it is what a client
says, and means nothing.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any, cast

import grpc

from fedshare.errors import NAME, brief

RUN = "fedshare-run"  # of a client's call: the run that it asks for; of an answer's: the run that it has come to
WAIT = "fedshare-wait"  # with an error: the caller may come to the run later
PEER, CERTIFICATE = "fedshare-peer", "fedshare-certificate-bin"
METADATA_LIMIT = 1 << 16  # bytes; a certificate takes 1 to 8 kB

Metadata = tuple[tuple[str, str | bytes], ...]
Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


def asking(run: str) -> Metadata:
    """The metadata of a call for the run of this name; empty: for any run."""
    return ((RUN, run),) if run else ()


def asked(context: grpc.aio.ServicerContext) -> str:
    """The run that a caller asks for; empty: any."""
    return str(_value(context.invocation_metadata(), RUN) or "")


def arrived(metadata: Any) -> str:
    """The run that a client has come to, by the first metadata of an answer; empty: not said."""
    return str(_value(metadata, RUN) or "")


def wait_for(error: Any) -> str | None:
    """What to wait for, where a gate's error says that the caller may reach its run later."""
    told = _value(error.trailing_metadata(), WAIT)
    return None if told is None else brief(error.details() or "")


def elsewhere(context: grpc.aio.ServicerContext, name: str) -> str | None:
    """Why a caller is refused that asks for another run than the one called `name`; "": it has no name."""
    run = asked(context)
    if not run or run == name:
        return None
    return f"it asks for run {brief(run, NAME)!r}; here is " + (f"{name!r} alone" if name else "one without a name")


def told(context: grpc.aio.ServicerContext) -> Metadata:
    """What a gate hands over about a caller: its address and its certificate, and nothing that it has sent."""
    certificates = context.auth_context().get("x509_pem_cert") or []
    return (PEER, context.peer()), *((CERTIFICATE, one) for one in certificates[:1])


def relayed(method: Handler) -> Handler:
    """`method`, with a context that has what the gate said of the caller."""

    @wraps(method)
    async def heard(request: Any, context: grpc.aio.ServicerContext) -> Any:
        caller = _Relayed(context)
        if not caller.peer():
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "only a gate connects here")
        return await method(request, cast(grpc.aio.ServicerContext, caller))

    return heard


class _Relayed:
    """The context of a call through a gate, as if its caller had made it here."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context
        self._peer = _value(context.invocation_metadata(), PEER)
        self._certificate = _value(context.invocation_metadata(), CERTIFICATE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def peer(self) -> str:
        return str(self._peer or "")

    def auth_context(self) -> dict[str, list[bytes]]:
        if not isinstance(self._certificate, bytes):
            return {}
        return {"transport_security_type": [b"ssl"], "x509_pem_cert": [self._certificate]}


def _value(metadata: Iterable[tuple[str, str | bytes]] | None, key: str) -> str | bytes | None:
    return next((value for name, value in metadata or () if name == key), None)
