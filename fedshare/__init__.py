"""A laboratory and a deployment for federated and decentralised learning."""

__version__ = "0.2.0"
