"""What lies between a server and its clients: networks around another network."""

from fedshare.links.links import Links

__all__ = ["Links"]
