"""Runs of a preset that a table is made of: what is there already is not made again, what was stopped goes on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedshare.experiments.config.compose import resolved
from fedshare.runs import RunFolder


def rows(path: Path, preset: str, wanted: list[str]) -> list[dict[str, Any]]:
    """The rows of the run in the folder `path`: of the preset with the overrides `wanted`."""
    folder = RunFolder(path)
    command = ["run", "-cn", preset, *wanted, f"folder={path}"]
    if folder.config.exists():
        if OmegaConf.load(folder.config) != resolved(wanted, preset):
            raise SystemExit(f"{path}: holds a run of another config: say another --into")
        command = ["resume", str(path)]
    found = folder.rows() if folder.metrics.exists() else []
    if not found or found[-1]["round"] < resolved(wanted, preset).rounds:
        subprocess.run([sys.executable, "-m", "fedshare", *command], check=True, stdout=sys.stderr)
    return folder.rows()
