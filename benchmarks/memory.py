"""How much memory something takes, for the benchmarks here."""

from collections.abc import Callable
from pathlib import Path


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes of memory that the work needs at its most, beyond what is there; None where the system does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # the peak so far is forgotten
    except OSError:
        return None

    def read(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return 1024 * int(line.split()[1])

    before = read("VmRSS")
    work()
    return read("VmHWM") - before
