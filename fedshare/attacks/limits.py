"""Checks of an attack's settings."""

import math

from fedshare.errors import UserError


def limit(settings: object, least: float, most: float, *names: str) -> None:
    """Raise UserError if one of the settings `names` is not a finite number from `least` to `most`."""
    for name in names:
        value = getattr(settings, name)
        if not (least <= value <= most and math.isfinite(value)):
            bounds = [f"at least {least}"] * math.isfinite(least) + [f"at most {most}"] * math.isfinite(most)
            allowed = " and ".join(bounds) or "a finite number"
            raise UserError(f"{name}={value}: must be {allowed}")
