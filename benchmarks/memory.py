"""How much memory something takes, for the benchmarks here."""

from collections.abc import Callable
from pathlib import Path


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes of memory that the work needs at its most, beyond what is there; None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        return None
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def read(key: str, process: int | str = "self") -> int:
    """Bytes that the system tells of a process: VmRSS, VmHWM. Raises OSError where it has gone."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)
