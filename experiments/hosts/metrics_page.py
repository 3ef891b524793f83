"""A page of metrics for Prometheus, over HTTP."""

from wsgiref.simple_server import WSGIServer

from fedshare.errors import UserError
from fedshare.machine.extras import importing

with importing("prometheus_client", "--metrics"):
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server


class Page:
    """What is in `registry`, and what this process uses."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._server: WSGIServer | None = None

    def listen(self, address: str) -> str:
        """Listen at "[HOST:]PORT", by default on this machine only; return the page's URL. Raises UserError."""
        host, _, port = address.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise UserError(f"--metrics {address}: must be [HOST:]PORT, such as 9464 or 0.0.0.0:9464")
        host = host or "127.0.0.1"
        try:
            self._server, _ = start_http_server(int(port), host.strip("[]"), self.registry)
        except OSError as error:
            raise UserError(f"--metrics {address}: cannot listen there: {error.strerror or error}") from error
        return f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
