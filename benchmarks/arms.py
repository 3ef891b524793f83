"""Runs of a preset for a table: finished ones are reused, stopped ones resumed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedshare.experiments.config.compose import resolved
from fedshare.runs import RunFolder


def rows(path: Path, preset: str, wanted: list[str]) -> list[dict[str, Any]]:
    """Return the rows of the run in the folder `path`, of the preset with the overrides `wanted`; play it if needed."""
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
