"""Prometheus metrics of a relay, over HTTP: what `Host.status` says, at each scrape."""

from collections.abc import Callable, Iterator
from typing import Any

from fedshare.experiments.hosts.metrics_page import Page
from fedshare.machine.extras import importing

with importing("prometheus_client", "--metrics"):
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector


class Metrics(Page, Collector):
    """`status` returns what `fedshare.transport.relay.host.Host.status` does."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self._status = status
        self.registry.register(self)

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
