"""Numbers formatted for people."""

import math


def human_bytes(count: float) -> str:
    """``12 B``, ``3.4 kB``, ``1.2 GB``: powers of 1000, as is usual for networks."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def human_seconds(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = whole // 60
    return f"{minutes // 60} h {minutes % 60:02d} min"


def decimal(value: float | None, digits: int = 4) -> str:
    """`value` with this many decimals; ``-`` if it is None."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if not math.isfinite(value) or abs(value) < 1000 else f"{value:.1e}"
