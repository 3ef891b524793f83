"""The experiments/ folder beside this package, importable as fedshare.experiments."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "experiments")]
