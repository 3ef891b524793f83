"""The last lines of a run."""

from collections import Counter
from pathlib import Path
from typing import Any

from fedshare.report.best import Best
from fedshare.report.rows import MARK, Row, among, evaluations, headline, remark, share, spans
from fedshare.report.units import decimal, human_bytes, human_seconds


def summary(rows: list[dict[str, Any]], folder: Path | str, best: Best | None = None) -> str:
    """Return the results, the cost and the location as a few aligned lines, from the rows of ``metrics.jsonl``.

    `best` is the best round on validation examples; no round is selected by test results.
    """
    lines: list[tuple[str, str]] = []
    name = headline(rows)
    evaluated = [row for row in rows if row.get(name) is not None]
    if evaluated:
        last = evaluated[-1]
        tests = evaluations(rows)
        mark = MARK if remark(last, next((row for row in tests[::-1] if row["round"] < last["round"]), None)) else ""
        means = {"mean of clients": f"{name}_mean", "worst 10 %": f"{name}_worst10"}
        parts = [f"{name} {decimal(last[key])}" for name, key in means.items() if key in last]
        aside = f" ({', '.join(parts)})" if parts else ""
        before = rows[0].get("before", {})
        other = MARK if before and among(before) != among(last) else ""
        first = f"; before round 1: {decimal(before[name])}{other}" if name in before else ""
        lines.append((name, f"{decimal(last[name])}{mark} in round {last['round']}{aside}{first}"))
        lines += [("tested" if not number else "", text) for number, text in enumerate(_others(tests, last))]
        for other in last.get("per_client", ("loss",)):
            if other != name and other in last and other != "examples":
                first = f"; before round 1: {decimal(before[other])}" if other in before else ""
                lines.append((other, decimal(last[other]) + mark + first))
        if found := last.get("average"):
            apart = f", from which the peers' models are {decimal(last['consensus'])} away" * ("consensus" in last)
            lines.append(("average", f"{name} {decimal(found.get(name))}{mark} of the average model{apart}"))
        if found := last.get("unseen"):
            lines.append(("unseen", f"{name} {decimal(found.get(name))}{mark} of clients that never trained"))
        if best and best.round:
            chosen = next(row for row in rows if row["round"] == best.round)
            said = f"round {best.round} by validation {best.metric} {decimal(best.value)}"
            others = f" ({why})" if (why := share(chosen)) else ""
            lines.append(("best", f"{said}: test {name} {decimal(chosen.get(name))}{MARK if why else ''}{others}"))
    lines += [("traffic" if not number else "", text) for number, text in enumerate(_traffic(rows))]
    if spent := [row["max_epsilon"] for row in rows if row.get("max_epsilon") is not None]:
        lines.append(("privacy", f"epsilon {decimal(max(spent), 2)}, of the client that has spent most"))

    phases: Counter[str] = Counter()
    for row in rows:
        phases.update(row.get("seconds", {}))
    parts = [f"{name} {human_seconds(seconds)}" for name, seconds in phases.most_common() if seconds >= 0.005]
    lines.append(("time", human_seconds(sum(phases.values())) + (f": {', '.join(parts)}" if parts else "")))

    dropped = Counter(client for row in rows for client in row.get("dropped", {}))
    if dropped:
        who = ", ".join(f"{client} ({times}x)" for client, times in dropped.most_common(5))
        lines.append(("dropped", f"{dropped.total()}, by client: {who}{_more(dropped)}"))
    odd = Counter(client for row in rows for client in {c for some in row.get("not_finite", {}).values() for c in some})
    if odd:
        who = ", ".join(f"{client} ({times}x)" for client, times in odd.most_common(5))
        lines.append(("losses", f"not finite, and in no mean: of client {who}{_more(odd)}"))
    if weak := [row for row in rows if "weakened" in row]:
        which = spans(row["round"] for row in weak)
        lines.append(("weakened", f"round{'s' * (len(weak) > 1)} {which}: {weak[-1]['weakened']}"))
    lines.append(("files", str(folder)))
    width = max(9, *(len(name) for name, _ in lines))
    return "\n".join(f"{name:<{width}} {text}" for name, text in lines)


def _more(counted: Counter[Any]) -> str:
    return f" and {len(counted) - 5} more" if len(counted) > 5 else ""


def _others(tests: list[Row], last: Row) -> list[str]:
    """Return which clients are missing from the last test's means, and which rounds' means are over other clients."""
    before = [row["round"] for row in tests if among(row) != among(last)]
    lines = [why] if (why := share(last)) else []
    if before:
        rounds = f"round{'s' * (len(before) > 1)} {spans(before)}"
        lines.append(f"{rounds}: other clients, not to be compared with round {last['round']}")
    return lines


def _traffic(rows: list[dict[str, Any]]) -> list[str]:
    """Return the bytes each way: in total, by group if there are several, and the cost of sharing the whole model."""

    def both(up: float, down: float) -> str:
        return f"{human_bytes(up)} up, {human_bytes(down)} down"

    sums = {way: sum(row.get(f"bytes_{way}", 0) for row in rows) for way in ("up", "down")}
    full = {way: sum(row.get(f"bytes_{way}_full", 0) for row in rows) for way in ("up", "down")}
    groups = {way: Counter[str]() for way in ("up", "down")}
    for row in rows:
        for way, counter in groups.items():
            counter.update(row.get(f"bytes_{way}_by_group", {}))
    lines = [both(**sums)]
    named = sorted(groups["up"].keys() | groups["down"].keys())
    if len(named) > 1:
        lines += [f"  {name}: {both(groups['up'][name], groups['down'][name])}" for name in named]
    if sum(full.values()) and full != sums:
        share = 100 * sum(sums.values()) / sum(full.values())
        lines.append(f"{share:.3g} % of full sharing, which would be {both(**full)}")
    return lines
