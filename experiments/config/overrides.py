"""Parsing of command-line overrides."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from fedshare.errors import UserError
from fedshare.experiments.config.application import App


def parse(overrides: Sequence[str], app: App) -> list[Override]:
    """Parse each override. Raises UserError for an invalid one."""
    try:
        parsed: list[Override] = OverridesParser.create(app.config_loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        if "=" not in error.override:
            raise UserError(f"{error.override}: is not KEY=VALUE") from error
        reason = str(error).removeprefix(f"Error parsing override '{error.override}'").strip()
        reason = reason.splitlines()[0].split(" expecting ")[0].replace("'<EOF>'", "at its end")
        raise UserError(f"{error.override}: cannot be read ({reason}); quote what is special") from error
    for override in parsed:
        if not override.key_or_group:
            raise UserError(f"{override.input_line}: is not KEY=VALUE")
    return parsed
