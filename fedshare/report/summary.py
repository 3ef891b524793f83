"""The last lines of a run."""

from collections import Counter
from pathlib import Path
from typing import Any

from fedshare.report.units import decimal, human_bytes, human_seconds


def summary(rows: list[dict[str, Any]], folder: Path | str) -> str:
    """What came out, what it cost, where it is: a few aligned lines, from the rows of ``metrics.jsonl``."""
    lines: list[tuple[str, str]] = []
    evaluated = [row for row in rows if row.get("accuracy") is not None]
    if evaluated:
        last = evaluated[-1]
        best = max(evaluated, key=lambda row: row["accuracy"])
        among = {"mean of clients": "accuracy_mean", "worst 10 %": "accuracy_worst10"}
        parts = [f"{name} {decimal(last[key])}" for name, key in among.items() if key in last]
        aside = f" ({', '.join(parts)})" if parts else ""
        lines.append(("accuracy", f"{decimal(last['accuracy'])} in round {last['round']}{aside}"))
        if best["accuracy"] > last["accuracy"]:
            lines.append(("best", f"{decimal(best['accuracy'])} in round {best['round']}"))
        if "loss" in last:
            lines.append(("loss", decimal(last["loss"])))
    up, down = (sum(row.get(key, 0) for row in rows) for key in ("bytes_up", "bytes_down"))
    lines.append(("traffic", f"{human_bytes(up)} up, {human_bytes(down)} down"))

    phases: Counter[str] = Counter()
    for row in rows:
        phases.update(row.get("seconds", {}))
    parts = [f"{name} {human_seconds(seconds)}" for name, seconds in phases.most_common() if seconds >= 0.005]
    lines.append(("time", human_seconds(sum(phases.values())) + (f": {', '.join(parts)}" if parts else "")))

    dropped = Counter(client for row in rows for client in row.get("dropped", {}))
    if dropped:
        who = ", ".join(f"{client} ({times}x)" for client, times in dropped.most_common(5))
        more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        lines.append(("dropped", f"{dropped.total()}, by client: {who}{more}"))
    lines.append(("files", str(folder)))
    return "\n".join(f"{name:<9} {text}" for name, text in lines)
