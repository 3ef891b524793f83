"""What an extra brings: a test that needs it skips where it is not installed, and the reason names the extra."""

import importlib
from importlib.util import find_spec
from typing import Any

import pytest

from fedshare.machine.extras import EXTRAS, root_cause

NEEDED = {("client", "dpsgd"): "opacus"} | {
    ("peft", name): "peft" for name in ("lora", "ffa_lora", "fedsa_lora", "ia3", "vera", "vblora")
}


def extra(package: str) -> Any:
    """The package. A skip where it is missing, or cannot be imported, and why."""
    try:
        return importlib.import_module(package)
    except Exception as error:  # torchvision, which some import, may be of another build than torch
        lacking = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "" if lacking else f"; {package} cannot be imported: {root_cause(error)}"
        pytest.skip(f"needs fedshare[{EXTRAS[package]}]{why}", allow_module_level=True)


def needs(package: str) -> pytest.MarkDecorator:
    """A mark for tests of a package that they do not import themselves."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs fedshare[{EXTRAS[package]}]")


def option(group: str, name: str) -> Any:
    """An option of the config as a parameter of a test, that needs what the option needs."""
    marks = [needs(NEEDED[group, name])] if (group, name) in NEEDED else []
    return pytest.param(group, name, marks=marks, id=f"{group}={name}")
