"""Any Flower app from its folder: what `[tool.flwr.app]` in its pyproject.toml says."""

import importlib
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedshare.errors import RunHalted, UserError, first_line
from fedshare.flower.grid import OwnGrid, client_of

_PAIR = re.compile(r"""\s*([\w.-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"']+))""")


@dataclass(frozen=True)
class App:
    """An app's folder, and what its pyproject.toml says. Nothing of it is imported before it is asked for."""

    folder: Path
    components: dict[str, str]
    config: UserConfig

    @classmethod
    def at(cls, folder: Path) -> "App":
        path = folder / "pyproject.toml"
        try:
            app = tomllib.loads(path.read_text())["tool"]["flwr"]["app"]
            components = {name: str(app["components"][name]) for name in ("serverapp", "clientapp")}
            return cls(folder.resolve(), components, _flat(app.get("config", {})))
        except FileNotFoundError:
            raise UserError(f"{folder}: not a Flower app: it has no pyproject.toml") from None
        except KeyError as error:
            raise UserError(f"{path}: not a Flower app: no {error} in [tool.flwr.app.components]") from None
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path}: {first_line(error)}") from None

    def run_config(self, overrides: str) -> UserConfig:
        """The app's config with `overrides`: a TOML file's path, or pairs as Flower's own command takes them."""
        given = read_config(overrides)
        if unknown := sorted(given.keys() - self.config.keys()):
            allowed = ", ".join(sorted(self.config)) or "none"
            raise UserError(f"--run-config {unknown[0]}: no such key in the app's config; allowed: {allowed}")
        return {**self.config, **given}

    def server(self) -> ServerApp:
        return self._load("serverapp", ServerApp)

    def client(self) -> ClientApp:
        return self._load("clientapp", ClientApp)

    def _load(self, component: str, kind: type) -> Any:
        module, _, attribute = self.components[component].partition(":")
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            where = f"{self.folder}: {component} = {self.components[component]!r}"
            raise UserError(f"{where}: cannot be loaded: {first_line(error)}") from error
        if not isinstance(found, kind):
            raise UserError(f"{self.folder}: {component} is a {type(found).__name__}, not a {kind.__name__}")
        return found


def serve(app: ServerApp, grid: Grid, run_config: UserConfig) -> None:
    """Run a ServerApp on one of our Grids. Raises RunHalted where in the end no client could do its part."""
    app(grid, Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=run_config))
    if not isinstance(grid, OwnGrid) or not grid.failures:
        return
    some, reason = next(iter(sorted(grid.failures.items())))
    count = f"{len(grid.failures)} of {len(list(grid.get_node_ids()))} clients failed the last time they were asked"
    line = f"{count}; client {some}: {reason}"
    if grid.failures.keys() >= {client_of(node) for node in grid.get_node_ids()}:
        raise RunHalted(line)
    print(f"warning: {line}", file=sys.stderr)


def read_config(text: str, flag: str = "--run-config") -> UserConfig:
    """``a=1 b="x y"``, or the path of a TOML file; `flag` is what it was given with."""
    if text.endswith(".toml"):
        if not Path(text).is_file():
            raise UserError(f"{flag} {text}: no such file")
        text = Path(text).read_text()
    elif _PAIR.sub("", text).strip():
        raise UserError(f"{flag} {_PAIR.sub('', text).strip()}: is not KEY=VALUE")
    else:
        text = "\n".join(_PAIR.findall(text))
    try:
        return _flat(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f'{flag}: {first_line(error)}; text needs quotes: name="value"') from None


def _flat(nested: dict[str, Any], prefix: str = "") -> UserConfig:
    flat: UserConfig = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
