"""Any Flower app from its folder: what `[tool.flwr.app]` in its pyproject.toml says."""

import importlib
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedshare.errors import RunHalted, UserError, first_line
from fedshare.transport.flower.config import flat
from fedshare.transport.flower.grid import OwnGrid, client_of


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
            return cls(folder.resolve(), components, flat(app.get("config", {}), f"{path}: [tool.flwr.app.config]"))
        except FileNotFoundError:
            raise UserError(f"{folder}: not a Flower app: it has no pyproject.toml") from None
        except KeyError as error:
            raise UserError(f"{path}: not a Flower app: no {error} in [tool.flwr.app.components]") from None
        except TypeError:
            raise UserError(f"{path}: not a Flower app: [tool.flwr.app.components] is not a table") from None
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path}: {first_line(error)}") from None

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
    context = Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    try:
        app(grid, context)
    except KeyboardInterrupt:
        if isinstance(grid, OwnGrid) and grid.waiting.verdict:
            raise UserError(grid.waiting.verdict) from None
        raise
    if not isinstance(grid, OwnGrid) or not grid.failures:
        return
    some, reason = next(iter(sorted(grid.failures.items())))
    count = f"{len(grid.failures)} of {len(list(grid.get_node_ids()))} clients failed the last time they were asked"
    line = f"{count}; client {some}: {reason}"
    if grid.failures.keys() >= {client_of(node) for node in grid.get_node_ids()}:
        raise RunHalted(line)
    print(f"warning: {line}", file=sys.stderr)
