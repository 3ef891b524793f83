"""Imports that may fail: which of our extras provides a package, and the root cause of a failure in one line."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedshare.errors import UserError, brief, first_line

EXTRAS = {  # package -> extra
    "byzfl": "byzfl",
    "datasets": "hf",
    "flwr_datasets": "partitioners",
    "numba": "fast",
    "opacus": "dp",
    "optuna": "optuna",
    "pandas": "tables",
    "peft": "peft",
    "prometheus_client": "metrics",
    "pyarrow": "tables",
    "ray": "ray",
    "timm": "timm",
    "transformers": "peft",
    "zeroconf": "lan",
}
_LOADERS = ("hydra", "importlib", "fedshare.experiments.config.instantiate")  # frames of these modules only load others


@contextmanager
def importing(package: str, who: str, extra: str | None = None) -> Iterator[None]:
    """Turn a failed import inside the block into a UserError: `who` needs `package`, or why the import failed."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            name, extra = package.replace("_", "-"), extra or EXTRAS.get(package)
            bring = f"'fedshare[{extra}]'" if extra else name
            raise UserError(f"{who} needs {name}: pip install {bring}") from error
        raise UserError(f"{who}: {package} cannot be imported: {root_cause(error)}") from error


def root_cause(error: BaseException) -> str:
    """Return, in one line, where the first error of a chain was raised and its message."""
    error = _root(error)
    where, before = _place(error), error.__context__
    if not where:  # the requested name itself does not exist
        while isinstance(before, AttributeError):
            error, before = before, before.__context__
        return first_line(error)
    said = f"{where}: {_said(error)}"
    if before is not None and not error.__suppress_context__ and _place(before):
        said += f" (after {_said(before)})"
    return said


def missing(error: BaseException) -> str:
    """Return which package of an extra is missing and how to install it; "" if the error is another one."""
    error = _root(error)
    return _said(error) if _of_an_extra(error) and not _place(error, "fedshare") else ""


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _of_an_extra(error: BaseException) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name in EXTRAS


def _said(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is not installed: pip install 'fedshare[{EXTRAS[error.name]}]'"
    text = (error.msg or "") if isinstance(error, SyntaxError) else first_line(error)
    if not isinstance(error, ImportError) and text != type(error).__name__:
        text = f"{type(error).__name__}: {text}"
    return brief(text)


def _place(error: BaseException, *known: str) -> str:
    """File and line of the innermost frame that is not an import loader's and not in one of the `known` modules."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}, line {error.lineno or 1}"
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = f"{frame.f_globals.get('__name__')}."
        if not name.startswith(tuple(f"{module}." for module in (*_LOADERS, *known))):
            place = f"{_shown(frame.f_code.co_filename)}, line {line}"
    return place


def _shown(file: str) -> str:
    """The path from the package on if installed, relative if below the current folder, else the full path."""
    path = Path(file)
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts:
            return str(Path(*path.parts[path.parts.index(folder) + 1 :]))
    try:
        return str(path.relative_to(os.getcwd()))
    except (ValueError, OSError):
        return file
