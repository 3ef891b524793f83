"""Deployments: servers, clients and gates, and their operators."""
