"""A user's config folder: configs in the same groups as ours, and the modules that they name beside them."""

import argparse
import sys
from pathlib import Path

from fedshare.errors import UserError


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-cd",
        "--config-dir",
        metavar="DIR",
        help="a folder with your own configs, in groups as in experiments/conf, and the modules that they name",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="let a config written by another user name objects of this package; may be given several times",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that takes a config, as `fedshare run` does."""
    parser.add_argument("overrides", nargs="*", help="GROUP=OPTION and KEY=VALUE, as for `fedshare run`")
    parser.add_argument(
        "-cn", "--config-name", default="config", metavar="NAME", help="a preset, as for `fedshare run`"
    )
    add_config_dir(parser)
    add_trust(parser)


def importable(directory: str | None) -> None:
    """Make the modules in `directory` importable, after all others. Raises UserError if there is no such folder."""
    if directory is None:
        return
    if not Path(directory).is_dir():
        raise UserError(f"--config-dir {directory}: no such directory")
    if (place := str(Path(directory).absolute())) not in sys.path:
        sys.path.append(place)
