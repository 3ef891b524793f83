"""Federated algorithms, one file per paper."""
