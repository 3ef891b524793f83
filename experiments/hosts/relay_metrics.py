"""Prometheus metrics of a relay, over HTTP: what `Host.status` says, at each scrape."""

from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIServer

from fedshare.errors import UserError
from fedshare.machine.extras import importing

with importing("prometheus_client", "--metrics"):
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector


class Metrics(Collector):
    """`status` returns what `fedshare.transport.relay.host.Host.status` does."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._server: WSGIServer | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        said = self._status()
        peers = said["peers"].values()
        for name, about, value in (
            ("rounds", "Commits of the log", said["rounds"]),
            ("round_seconds", "Seconds that the last round took", said["round_seconds"]),
            ("since_seconds", "Seconds since the last commit", said["since_seconds"]),
            ("peers", "Peers that take part", sum(one["takes_part"] for one in peers)),
            ("peers_connected", "Peers that are connected", sum(one["connected"] for one in peers)),
            ("peers_removed", "Peers that were removed", sum(bool(one["removed"]) for one in peers)),
        ):
            yield GaugeMetricFamily(f"fedshare_relay_{name}", about, value)
        for name, about in (
            ("lag", "Commits that a connected peer has not been sent"),
            ("missed", "Rounds in a row without a message of the peer"),
            ("bytes", "Bytes of frames from the peer, on its connection"),
        ):
            family = GaugeMetricFamily(f"fedshare_relay_peer_{name}", about, labels=["peer"])
            for peer, one in said["peers"].items():
                if one[name] is not None:
                    family.add_metric([peer], one[name])
            yield family

    def listen(self, address: str) -> str:
        """Listen at "[HOST:]PORT", by default on this machine only; return the page's URL. Raises UserError."""
        host, _, port = address.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise UserError(f"--metrics {address}: must be [HOST:]PORT, such as 9464 or 0.0.0.0:9464")
        host = host or "127.0.0.1"
        try:
            self._server, _ = start_http_server(int(port), host.strip("[]"), self._registry)
        except OSError as error:
            raise UserError(f"--metrics {address}: cannot listen there: {error.strerror or error}") from error
        return f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
