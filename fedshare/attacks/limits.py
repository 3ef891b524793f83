"""What an attack's settings may be."""

import math

from fedshare.errors import UserError


def limit(settings: object, least: float, most: float, *names: str) -> None:
    """Raise UserError where one of the settings called `names` is not a finite number from `least` to `most`."""
    for name in names:
        value = getattr(settings, name)
        if not (least <= value <= most and math.isfinite(value)):
            bounds = [f"at least {least}"] * math.isfinite(least) + [f"at most {most}"] * math.isfinite(most)
            allowed = " and ".join(bounds) or "a finite number"
            raise UserError(f"{name}={value}: must be {allowed}")
