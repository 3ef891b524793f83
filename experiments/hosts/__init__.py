"""Deployments: servers, clients, gates, and the tools of their operators."""
