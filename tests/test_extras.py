"""What cannot be imported: the line that is shown names the root of it, with file and line."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_runs import fedshare

import world
from fedshare.attacks.from_byzfl import ByzFL as Attack
from fedshare.data.partition import Flwr
from fedshare.data.tokenizer import HuggingFaceTokenizer
from fedshare.errors import UserError
from fedshare.experiments.config.explain import PLUGINS
from fedshare.experiments.config.instantiate import make
from fedshare.machine.extras import EXTRAS, importing
from fedshare.models import Timm, Transformers
from fedshare.rules.byzfl import made
from fedshare.simulation.on_ray import Ray
from fedshare.training.private.privacy import Privacy
from optional import needs

LAZY = """
def __getattr__(name):
    try:
        import mylab.core
    except Exception as error:
        raise ModuleNotFoundError(f"Could not import module {name!r}. Are its requirements defined?") from error
"""
HIDING = """
try:
    import mylab.core
except Exception:
    raise ImportError("vision is not available")
"""
# Files of a package mylab, and what is said of _target_=mylab.model.Net, or of mylab.Net where there is no model.py.
KINDS: dict[str, tuple[dict[str, str], str]] = {
    "built for another version": (
        {"__init__": "from . import core", "core": "\nraise RuntimeError('operator mylab::nms does not exist')"},
        "{mylab}/core.py, line 2: RuntimeError: operator mylab::nms does not exist",
    ),
    "a shared library is missing": (
        {"model": "from . import core", "core": "raise ImportError('liblab.so.1: cannot open shared object file')"},
        "{mylab}/core.py, line 1: liblab.so.1: cannot open shared object file",
    ),
    "a shared library is damaged": (
        {"model": "from . import core", "core": "raise OSError('liblab.so.1: invalid ELF header')"},
        "{mylab}/core.py, line 1: OSError: liblab.so.1: invalid ELF header",
    ),
    "behind a lazy module": (
        {"__init__": LAZY, "core": "raise RuntimeError('two libraries of different builds\\nand more')"},
        "{mylab}/core.py, line 1: RuntimeError: two libraries of different builds",
    ),
    "behind another error": (
        {"__init__": HIDING, "core": "raise RuntimeError('no such operator')"},
        "{mylab}/__init__.py, line 5: vision is not available (after RuntimeError: no such operator)",
    ),
    "an error that says nothing": ({"model": "1\nassert False"}, "{mylab}/model.py, line 2: AssertionError"),
    "a circle": (
        {"model": "from mylab.core import part\nclass Net: ...", "core": "\nfrom mylab.model import Net\npart = 1"},
        "{mylab}/core.py, line 2: cannot import name 'Net' from partially initialized module 'mylab.model' (most",
    ),
    "no Python": ({"model": "import mylab.core", "core": "x = 1\ny = = 2"}, "{mylab}/core.py, line 2: SyntaxError: "),
    "crooked": ({"model": "if 1:\npass"}, "{mylab}/model.py, line 2: IndentationError: "),
    "an import of nothing": (
        {"model": "import os\nimport nobody_has_this.part"},
        "{mylab}/model.py, line 2: No module named 'nobody_has_this'",
    ),
    "an import of a name that is not there": (
        {"model": "from os import walker"},
        "{mylab}/model.py, line 1: cannot import name 'walker' from 'os'",
    ),
    "a program that ends": ({"model": "import sys\nsys.exit(3)"}, "{mylab}/model.py, line 2: SystemExit: 3"),
    "no such name": ({"model": "class Ned: ..."}, "module 'mylab.model' has no attribute 'Net'"),
    "no such module": ({"__init__": "class Ned: ..."}, "module 'mylab' has no attribute 'Net'"),
}


class Absent:
    """Finds nothing of a package, as where it is not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def package(folder: Path, name: str, files: dict[str, str]) -> Path:
    (folder / name).mkdir(parents=True)
    for file, text in {"__init__": "", **files}.items():
        (folder / name / f"{file}.py").write_text(text)
    return folder / name


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a package one that was not imported yet; after the test what was known is known again, and no more."""
    names = set[str]()

    def known(name: str) -> list[str]:
        return [module for module in sys.modules if module.partition(".")[0] == name]

    def forget(name: str) -> None:
        names.add(name)
        for module in known(name):
            monkeypatch.delitem(sys.modules, module)
        importlib.invalidate_caches()

    yield forget
    for name in names:
        for module in known(name):
            del sys.modules[module]
    monkeypatch.undo()


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_cannot_be_imported_is_said_with_its_root(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    files, said = KINDS[kind]
    forget("mylab")
    mylab = package(tmp_path / "site", "mylab", files)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(tmp_path / "site")
    target = "mylab.model.Net" if "model" in files else "mylab.Net"
    assert fedshare("run", f"model._target_={target}", "folder=run") == 2
    out, err = capfd.readouterr()
    line = f"fedshare: model._target_={target}: cannot be imported: {said.format(mylab=mylab)}"
    assert err.startswith(line), err
    assert (out, err.count("\n"), os.listdir()) == ("", 1, [])


def test_files_below_the_current_folder_are_named_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    forget("mylab")
    package(tmp_path, "mylab", {"model": "import timm"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    assert fedshare("run", "model._target_=mylab.model.Net", "folder=run") == 2
    said = "mylab/model.py, line 1: timm is not installed: pip install 'fedshare[timm]'"
    assert capfd.readouterr().err == f"fedshare: model._target_=mylab.model.Net: cannot be imported: {said}\n"


CALLED = {
    "not installed": ("def load():\n    import nobody_has_this", "{file}, line 2: No module named 'nobody_has_this'"),
    "an extra": ("def load():\n    import timm", "{file}, line 2: timm is not installed: pip install 'fedshare[timm]'"),
    "broken": (
        "def load():\n    try: 1 / 0\n    except ArithmeticError as error: raise ImportError('lab') from error",
        "{file}, line 2: ZeroDivisionError: division by zero",
    ),
}


@pytest.mark.parametrize("kind", CALLED)
def test_what_a_target_imports_when_it_is_called(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[str], None]
) -> None:
    text, said = CALLED[kind]
    forget("mylab")
    mylab = package(tmp_path, "mylab", {"data": text})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as raised:
        make(OmegaConf.create({"_target_": "mylab.data.load"}), "data.load")
    assert str(raised.value) == f"data.load: {said.format(file=mylab / 'data.py')}"


def noisy() -> Privacy:
    return Privacy(noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-5)


DOORS: dict[str, tuple[str, Callable[[], object]]] = {
    "timm": ("Timm", lambda: Timm("resnet10t", [3, 32, 32], 10)),
    "transformers": ("Transformers", lambda: Transformers("bert", "classification", 40, 12, 3)),
    "the tokenizer's transformers": ("HuggingFaceTokenizer", lambda: HuggingFaceTokenizer("bert")),
    "opacus": ("privacy.noise_multiplier", noisy),
    "ray": ("cluster=ray", Ray),
    "the attack's byzfl": ("attack=byzfl", lambda: Attack(name="Mimic")),
    "the rule's byzfl": ("rule=byzfl", lambda: made("aggregators", "Average", {}, 1)),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "ImportError"])
def test_an_optional_library_that_is_broken_is_one_line(
    door: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[str], None]
) -> None:
    who, use = DOORS[door]
    name = door.split()[-1]
    forget(name)
    package(tmp_path / "site-packages", name, {"__init__": f"\nraise {error}('it is for another torch')"})
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    with pytest.raises(UserError) as raised:
        use()
    kind = "" if error == "ImportError" else f"{error}: "
    place = f"{name}/__init__.py, line 2"
    assert str(raised.value) == f"{who}: {name} cannot be imported: {place}: {kind}it is for another torch"


@pytest.mark.parametrize("door", DOORS)
def test_an_optional_library_that_is_missing_is_named_with_its_extra(
    door: str, monkeypatch: pytest.MonkeyPatch, forget: Callable[[str], None]
) -> None:
    who, use = DOORS[door]
    name = door.split()[-1]
    forget(name)
    monkeypatch.setattr(sys, "meta_path", [Absent(name), *sys.meta_path])
    with pytest.raises(UserError) as raised:
        use()
    assert str(raised.value) == f"{who} needs {name}: pip install 'fedshare[{EXTRAS[name]}]'"


@pytest.mark.parametrize("error", ["RuntimeError", "OSError"])
def test_a_partitioners_library_that_is_broken_is_one_line(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[str], None]
) -> None:
    from test_partitions import toy

    package(tmp_path / "site-packages", "datasets", {"__init__": "class Dataset: ..."})
    package(tmp_path / "site-packages", "flwr_datasets", {"__init__": f"raise {error}('no')"})
    for name in ("datasets", "flwr_datasets"):
        forget(name)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    partition = Flwr(partitioner={"_target_": "flwr_datasets.partitioner.IidPartitioner", "num_partitions": 3})
    with pytest.raises(UserError) as raised:
        partition.split(toy(), 0)
    place = "flwr_datasets/__init__.py, line 1"
    assert str(raised.value) == f"partition=flwr: flwr_datasets cannot be imported: {place}: {error}: no"


def test_a_package_that_is_no_extra_is_named_alone(
    monkeypatch: pytest.MonkeyPatch, forget: Callable[[str], None]
) -> None:
    forget("torchmetrics")
    monkeypatch.setattr(sys, "meta_path", [Absent("torchmetrics"), *sys.meta_path])
    with pytest.raises(UserError) as raised, importing("torchmetrics", "task"):
        importlib.import_module("torchmetrics")
    assert str(raised.value) == "task needs torchmetrics: pip install torchmetrics"


@pytest.mark.process
@needs("peft")
def test_a_torchvision_of_another_build_than_torch_is_named(tmp_path: Path) -> None:
    """Not peft, which imports transformers, which imports torchvision where there is one."""
    package(tmp_path / "site", "torchvision", {"__init__": "raise RuntimeError('operator torchvision::nms does not')"})
    metadata = tmp_path / "site" / "torchvision-0.28.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fedshare", "run", "peft=lora", "data=digits", "model=vit", "folder=run"]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=metadata.parent, env=environment, capture_output=True, text=True, timeout=world.PATIENCE
    )
    said = f"{tmp_path}/site/torchvision/__init__.py, line 1: RuntimeError: operator torchvision::nms does not"
    assert done.stderr == f"fedshare: peft.config._target_=peft.LoraConfig: cannot be imported: {said}\n"
    assert (done.returncode, os.listdir(metadata.parent)) == (2, ["METADATA"])


@pytest.mark.parametrize(("group", "option"), PLUGINS)
def test_a_plugin_of_hydra_is_there_or_named_with_its_extra(
    group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    extra, kind = PLUGINS[group, option], group.partition("/")[2]
    status = fedshare("run", "--cfg", "hydra", f"{group}={option}")
    out, err = capfd.readouterr()
    if any(found.name == f"hydra-{extra}-{kind}" for found in distributions()):
        assert (status, err) == (0, "")
        assert f"hydra_plugins.hydra_{extra}_{kind}" in out
    else:
        assert (status, out) == (2, "")
        assert err == f"fedshare: {group}={option}: is not installed: pip install 'fedshare[{extra}]'\n"
