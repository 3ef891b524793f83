"""Adversaries, for any strategy: what they do to their examples, to their updates, and when they see everyone's."""

from fedshare.attacks.attack import Attack, Sight

__all__ = ["Attack", "Sight"]
