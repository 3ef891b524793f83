"""The overhead of a deployment: round time, bytes and memory, two client processes, mutual TLS.

    python benchmarks/stream.py [--rounds N] [--repeat N] [--superlink] [--json FILE]

Three levels, each on top of the one before: the bare stream, Flower messages on it, and a complete fedshare exchange.
Every client sends back what it receives. Times are per round; bytes are those of the TCP streams, TLS included, over
`--rounds` rounds of an almost empty message; KB and MB are 10^3 and 10^6 bytes. `--superlink` also runs the same Flower
app on Flower's own SuperLink and SuperNodes, which takes a minute more.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from echoes import APP, CLIENTS, HOST, LEVELS, Once, deployed

from fedshare.identity import keys
from fedshare.transport.flower.private import why_no_grpc_fleet

SIZES = {"40 MB, 1 tensor": (40_000_000, 1), "400 KB, 1 tensor": (400_000, 1), "400 KB, 100 tensors": (400_000, 100)}


def seconds(once: Once, count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return times


def speed(level: str, folder: Path, rounds: int, repeat: int) -> dict[str, Any]:
    """Return the seconds of rounds, by message, and the memory of the first of the largest."""
    found: dict[str, Any] = {}
    with deployed(level, folder) as here:
        for name, (size, tensors) in SIZES.items():
            if level == "stream" and tensors > 1:
                continue  # bytes have no tensors
            once = here.prepare(size, tensors)
            before = {who: resident(pid, reset=True) for who, pid in here.pids.items()}
            once()
            found.setdefault("memory", {who: [before[who], resident(pid)] for who, pid in here.pids.items()})
            times = seconds(once, repeat)
            found[name] = {"median": median(times), "slowest": max(times)}
        once = here.prepare(0, 1)
        seconds(once, rounds // 5)
        batches = [seconds(once, rounds) for _ in range(repeat)]
    means = [sum(batch) / rounds for batch in batches]
    return found | {"almost empty": {"median": median(means), "slowest": max(map(max, batches))}}


def traffic(level: str, folder: Path, rounds: int) -> dict[str, float]:
    """Return the bytes per client and round each way, for an almost empty message."""
    with deployed(level, folder, counted=True) as here:
        assert here.proxy is not None
        once = here.prepare(0, 1)
        seconds(once, rounds // 5)
        up, down = here.proxy.up, here.proxy.down
        seconds(once, rounds)
        return {"up": (here.proxy.up - up) / rounds / CLIENTS, "down": (here.proxy.down - down) / rounds / CLIENTS}


def resident(pid: int | None, reset: bool = False) -> float | None:
    """Return a process's peak memory in bytes; with `reset`, its current memory, from which a new peak is measured.

    None if the system does not provide it: it is read from Linux's /proc.
    """
    try:
        if reset:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except OSError:
        return None


def superlink(folder: Path, rounds: int) -> list[float]:
    """Return the seconds of rounds with an almost empty message, of the app in echo/ on Flower's own SuperLink."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from fleet import Fleet  # type: ignore[import-not-found]

    app = shutil.copytree(APP, folder / "echo", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fleet").mkdir()
    with Fleet(folder / "fleet", CLIENTS) as fleet:
        log = fleet.run(app, {"nodes": CLIENTS, "rounds": rounds, "wait": 120.0}, timeout=120 + 30 * rounds)
    line = next(line for line in log.splitlines() if '{"echo"' in line)
    times: list[float] = json.loads(line[line.index("{") :])["echo"]
    return times


# Output.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="of an almost empty message, timed and counted at once")
    parser.add_argument("--repeat", type=int, default=5, help="how often, and rounds of each larger message")
    parser.add_argument("--superlink", action="store_true", help="the same app on Flower's own SuperLink beside it")
    parser.add_argument("--superlink-rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg(), "cores": os.cpu_count(), "seconds": {}, "bytes": {}}
    print(f"{CLIENTS} clients, TLS with client certificates; {found['cores']} cores, load {found['load'][0]:.2f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys.make(folder / "keys", [HOST], CLIENTS, 1)
        for level in LEVELS:
            found["seconds"][level] = speed(level, folder, options.rounds, options.repeat)
            found["bytes"][level] = traffic(level, folder, options.rounds)
            show(level, found["seconds"][level], found["bytes"][level])
        if options.superlink:
            found["superlink"] = superlink(folder, options.superlink_rounds)
            theirs, ours = median(found["superlink"]), found["seconds"]["StreamGrid"]["almost empty"]["median"]
            print(f"\nFlower's SuperLink: {theirs:.2f} s a round, {theirs / ours:,.0f} times that of StreamGrid")
            print(why_no_grpc_fleet() or "its SuperNodes speak gRPC")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def show(level: str, times: dict[str, Any], traffic: dict[str, float]) -> None:
    rate = 1 / times["almost empty"]["median"]
    print(f"\n{level}: {rate:,.0f} rounds/s; a client and round {traffic['up']:.0f} B up, {traffic['down']:.0f} B down")
    print(f"  {'a round, there and back':24} {'median':>11} {'slowest':>11}")
    for name in ("almost empty", *SIZES):
        if name in times:
            print(f"  {name:24} {1e3 * times[name]['median']:8.2f} ms {1e3 * times[name]['slowest']:8.2f} ms")
    for who, (before, peak) in times["memory"].items():
        if peak is not None:
            print(f"  40 MB: {who:9} at most {peak / 1e6:.0f} MB resident, {before / 1e6:.0f} before", flush=True)


if __name__ == "__main__":
    main()
