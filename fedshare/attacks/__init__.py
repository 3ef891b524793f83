"""Adversaries, for any strategy: attacks on their examples, on their updates, and with sight of honest updates."""

from fedshare.attacks.attack import Attack, Sight

__all__ = ["Attack", "Sight"]
