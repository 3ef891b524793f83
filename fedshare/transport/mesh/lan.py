"""Peers of a run on one local network find each other by multicast DNS: the extra `lan`."""

import ipaddress
import socket
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedshare.machine.extras import importing
from fedshare.transport.stream.diagnose import split

if TYPE_CHECKING:
    from zeroconf import Zeroconf

TYPE = "_fedshare._tcp.local."
SHORT = 16  # digits of the run's name that are told to the network
_MOST = 10_000  # addresses that are remembered, whoever announces them


class Lan:
    """Announces that a peer listens at `address`, and collects those of the others of its run, within `with`.

    Anyone on the network can announce anything: who is at an address is for TLS to show. `interfaces`: the addresses of
    the network interfaces to use; without them all.
    """

    def __init__(self, run: bytes, me: int, address: str, interfaces: list[str] | None = None) -> None:
        self.addresses = set[str]()  # as for `known` of `MeshLinks`, which looks again and again
        self._run, self._me, self._interfaces = run.hex()[:SHORT], me, interfaces
        self._host, self._port = split(address)

    def __enter__(self) -> Self:
        with importing("zeroconf", "finding peers on a local network"):
            import zeroconf
        self._zeroconf = zeroconf.Zeroconf(self._interfaces or zeroconf.InterfaceChoice.All)
        self._info = zeroconf.ServiceInfo(
            TYPE,
            f"{self._run}-{self._me}.{TYPE}",
            port=self._port,
            addresses=[ipaddress.ip_address(one).packed for one in self._own()],
            properties={"run": self._run, "peer": str(self._me)},
            server=f"fedshare-{self._run}-{self._me}.local.",
        )
        self._zeroconf.register_service(self._info, allow_name_change=True)
        self._browser = zeroconf.ServiceBrowser(self._zeroconf, TYPE, handlers=[self._heard])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._browser.cancel()
        self._zeroconf.close()

    def _own(self) -> list[str]:
        """The addresses at which others reach this host."""
        if self._host not in ("0.0.0.0", "::", ""):
            return [socket.getaddrinfo(self._host, None)[0][4][0]]  # type: ignore[list-item]
        if self._interfaces:
            return self._interfaces
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("224.0.0.251", 5353))  # sends nothing: it is the address from which it would
            return [probe.getsockname()[0]]

    def _heard(self, zeroconf: "Zeroconf", service_type: str, name: str, state_change: object) -> None:
        """Take what somebody announces, in zeroconf's thread. What is gone is kept: it may only be cut off."""
        info = zeroconf.get_service_info(service_type, name, timeout=3000)
        if info is None or info.port is None:
            return
        said = {key: (value or b"").decode("ascii", "replace") for key, value in info.properties.items()}
        if said.get(b"run") != self._run or said.get(b"peer") == str(self._me):
            return
        for address in info.parsed_addresses()[:4]:
            if len(self.addresses) < _MOST:
                self.addresses.add(f"[{address}]:{info.port}" if ":" in address else f"{address}:{info.port}")
