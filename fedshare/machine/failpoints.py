"""Named points at which a test kills this process."""

import os
import signal
from collections import Counter

_passed = Counter[str]()


def failpoint(name: str) -> None:
    """Kill this process, as kill -9 does, if ``FEDSHARE_FAILPOINT`` is NAME, or NAME:N and this is the Nth time."""
    if wanted := os.environ.get("FEDSHARE_FAILPOINT"):
        _passed[name] += 1
        if wanted in (name, f"{name}:{_passed[name]}"):
            os.kill(os.getpid(), signal.SIGKILL)
