"""`fedshare ledger`: the contents of a ledger, the number of messages per peer, and its size."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.experiments.beginnings import warn
from fedshare.ledger import Commit
from fedshare.ledger.file import Contents
from fedshare.ledger.meaning import Meaning
from fedshare.report.units import decimal, human_bytes
from fedshare.runs import RunFolder

MOST = 60  # peers that get a line each
FLOAT = 4  # bytes


def opened(folder: RunFolder) -> tuple[Contents, Meaning]:
    """Return the run's ledger and its decoder; warn of a truncated commit. Raises UserError."""
    if not folder.ledger.exists():
        why = "its strategy sends models" if folder.links() else "no round is recorded yet"
        raise UserError(f"{folder.path}: has no ledger: {why}")
    contents = folder.ledger.read()
    if line := folder.ledger.shortened(contents):
        warn(line)
    try:
        return contents, Meaning(contents.manifest)
    except ValueError as error:
        raise UserError(f"{folder.ledger.path}: {error}") from error


def ledger(run: str) -> None:
    folder = RunFolder.open(run)
    contents, meaning = opened(folder)
    try:
        peers = _said(meaning, contents.commits)
    except ValueError as error:
        raise UserError(f"{folder.ledger.path}: what a peer says are no codes: {error}") from error
    for name, text in _lines(folder, contents, meaning, peers):
        print(f"{name:<9} {text}")
    if peers:
        print("", *_table(peers), sep="\n")


def _said(meaning: Meaning, commits: Iterable[Commit]) -> dict[int, list[Tensor]]:
    """Return each peer's decoded values, by round."""
    kind = meaning.coding.encode(torch.zeros(1)).numpy().dtype
    said = dict[int, list[Tensor]]()
    for commit in commits:
        for peer, codes in commit.said.items():
            sent = torch.from_numpy(np.frombuffer(bytearray(codes), dtype=kind))
            said.setdefault(peer, []).append(meaning.coding.decode(sent))
    return dict(sorted(said.items()))


def _lines(
    folder: RunFolder, contents: Contents, meaning: Meaning, peers: dict[int, list[Tensor]]
) -> Iterable[tuple[str, str]]:
    messages = sum(map(len, peers.values()))
    entries = sum(len(values) for said in peers.values() for values in said)
    codes = sum(len(said) for commit in contents.commits for said in commit.said.values())
    framing = contents.end - contents.start - codes
    parts = {"manifest": contents.start, "codes": codes, "framing": framing, "cut short": contents.cut}
    said = ", ".join(f"{name} {human_bytes(count)}" for name, count in parts.items() if count or name != "cut short")
    whole = contents.end + contents.cut
    yield "file", f"{folder.ledger.path}, {human_bytes(whole)}: {said}"
    if not contents.places:
        yield "rounds", "none yet"
        return
    first, last = contents.commits[0], contents.commits[-1]
    yield "rounds", f"{first.round} to {last.round} in {len(contents.places):,} commits, head {contents.head}"
    each = f", each {codes / entries:g} B of codes and {decimal(framing / entries, 2)} B of framing" if entries else ""
    yield "entries", f"{entries:,}{each}"
    yield "step", _steps(meaning, contents.commits)
    parameters = sum(int(np.prod(shape, dtype=object)) for _, shape in contents.manifest.layout)
    for name, number, what in (("gradients", entries, "entry"), ("models", messages, "peer and round")):
        instead = FLOAT * parameters * number
        less = f"{whole / instead:,.1f} times less" if instead else "nothing"  # a model may share no parameter
        ratio = f"{instead / whole:,.0f} times the file" if instead >= whole else less
        yield name, f"{ratio}: {human_bytes(instead)}, one of floats for each {what}"


def _steps(meaning: Meaning, commits: list[Commit]) -> str:
    bits = _bits(meaning)
    sizes = [f"{step * 2.0**-bits:.4g} ({step} * 2**-{bits})" for step in (commits[0].step, commits[-1].step)]
    rounds = [f"in round {commit.round}" for commit in (commits[0], commits[-1])]
    if len({commit.step for commit in commits}) == 1:
        return f"{sizes[0]} in all rounds"
    return "; ".join(f"{size} {round}" for size, round in zip(sizes, rounds, strict=True))


def _bits(meaning: Meaning) -> int:
    """Fractional bits of a commit's step."""
    return meaning.manifest.fraction - meaning.coding.bits - meaning.directions.bits


def _table(peers: dict[int, list[Tensor]]) -> list[str]:
    lines = [["peer", "rounds", "entries", "nothing", "mean magnitude"]]
    for peer, said in list(peers.items())[:MOST]:
        values = torch.cat(said)
        finite = values[values.isfinite()].abs()
        mean = float(finite.mean()) if len(finite) else None
        lines.append([str(peer), f"{len(said):,}", f"{len(values):,}", f"{len(values) - len(finite):,}", decimal(mean)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    return table + [f"and {len(peers) - MOST:,} peers more"] * (len(peers) > MOST)
