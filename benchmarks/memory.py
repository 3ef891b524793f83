"""Memory measurements for the benchmarks."""

from collections.abc import Callable
from pathlib import Path


def peak_of(work: Callable[[], object]) -> int | None:
    """Return the peak memory of `work` in bytes, above the current one; None if the system does not provide it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return None
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def read(key: str, process: int | str = "self") -> int:
    """Return a process's memory in bytes, VmRSS or VmHWM. Raises OSError if it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)
