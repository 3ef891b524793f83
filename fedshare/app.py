"""The Flower app that `flwr run`, `fedshare server`, `fedshare client` and `fedshare flower-run` load."""

from fedshare.experiments.hosts.agreement import population
from fedshare.experiments.hosts.federation import serve
from fedshare.transport.flower import apps

server_app = apps.server_app(serve)
client_app = apps.client_app(population)
