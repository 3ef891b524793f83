"""Who is let in: by its greeting, its certificate, the operator's lists and orders, and the run that it asks for."""

import time
from collections.abc import Callable, Mapping

import grpc

from fedshare._proto.stream_pb2 import Down, Hello, Up, Welcome
from fedshare.errors import NAME, UserError, brief
from fedshare.identity.admission import Admission
from fedshare.transport.stream import handover, tls
from fedshare.transport.stream.callers import place_of
from fedshare.transport.stream.frames import PROTOCOL, FrameError, greeting, parse
from fedshare.transport.stream.journal import Journal
from fedshare.transport.stream.service import first_frame, refusal
from fedshare.transport.stream.settings import Settings


class Entrance:
    """`changed` is called when the operator's lists have changed: others may be barred now."""

    def __init__(self, settings: Settings, journal: Journal, changed: Callable[[], None]) -> None:
        self.admission = Admission()  # the operator's lists
        self.banned: Mapping[int, str] = {}  # the clients that the operator has banned, and why
        self._settings, self._journal, self._changed = settings, journal, changed

    async def hello(self, context: grpc.aio.ServicerContext, caller: Mapping[str, str]) -> Hello:
        """The greeting of a caller that is let in; that another is refused is noted, with `caller`: see `tls.caller`.

        Raises FrameError where there is no greeting, UserError where the caller is not let in.
        """
        place = place_of(context.peer())
        try:
            hello = greeting(Up, await first_frame(context)).hello
            certified = tls.certified(context)
        except (FrameError, UserError) as error:
            why = f"{'it sent ' * isinstance(error, FrameError)}{error}"
            known = tls.named(context)
            about, number = (place, {}) if known is None else (f"client {known}", {"client": known})
            self._journal.tally.say(about, f"{about} was refused: {why}")
            self._journal.record("refused", about, **caller, **number, reason=why)
            raise
        if reason := self._objection_to(hello, certified, context):
            who = hello.client if certified is None else certified
            about = place if certified is None else f"client {who}"
            line = f"client {who} was refused: {reason}"
            self._journal.tally.say(about, line)
            self._journal.record("refused", about, client=who, **caller, reason=reason)
            self._journal.refuse(who, reason)
            raise UserError(line)
        return hello

    async def answer(self, frame: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Say whether a caller would be let in, and let nobody in."""
        context.set_trailing_metadata((("time", f"{time.time():.3f}"),))
        try:
            hello = parse(Hello, frame)
            reason = self._objection_to(hello, tls.certified(context), context)
        except (FrameError, UserError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{context.peer()} sent {error}")
        down = Down(welcome=Welcome(clients=self._settings.clients))
        if reason:
            down = refusal(f"client {hello.client} was refused: {reason}")
        return bytes(down.SerializeToString())

    def refresh(self) -> None:
        """Read the operator's lists again where they were replaced."""
        if self.admission.refresh():
            self._changed()

    def _objection_to(self, hello: Hello, certified: int | None, context: grpc.aio.ServicerContext) -> str | None:
        """Why a caller is not let in; None where it is. `certified`: the client that its certificate names."""
        if elsewhere := handover.elsewhere(context, self._settings.name):
            return elsewhere
        ours = self._settings
        if certified is not None and certified != hello.client:
            return f"its certificate is client {certified}'s, but it says that it is client {hello.client}"
        self.refresh()
        if reason := self.admission.objection(hello.client, tls.shown(context)):
            return reason
        if hello.protocol != PROTOCOL or hello.version != ours.version:
            theirs = f"fedshare {brief(hello.version, NAME)} (stream {hello.protocol})"
            return f"it runs {theirs}, the server fedshare {ours.version} (stream {PROTOCOL})"
        if hello.config and ours.config_sha256 and hello.config != ours.config_sha256:
            return f"its config is {brief(hello.config[:12])}, the server's {ours.config_sha256[:12]}"
        if (why := self.banned.get(hello.client)) is not None:
            return f"the operator has banned it{why and f': {why}'}"
        if ours.clients and hello.client >= ours.clients:
            return f"there are {ours.clients} clients, 0 to {ours.clients - 1}"
        return None
