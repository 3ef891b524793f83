"""The strategies/ folder beside this package, importable as fedshare.strategies."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[1] / "strategies")]
