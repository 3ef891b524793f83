"""Who checks the config, and which code it may name where somebody else wrote it."""

import importlib
import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from test_ledger_commands import refuses, says
from test_runs import copy, fedshare

import world
from fedshare.errors import UserError
from fedshare.experiments.config import compose, trust
from fedshare.experiments.config.trust import Trust
from fedshare.identity import marks
from fedshare.runs import RunFolder

SMALL = ["data=digits", "model=logistic", "partition.clients=2", "rounds=1", "client.epochs=1"]
TRAP = """
from pathlib import Path
from torch import nn
import os
where = Path(__file__).parent
(where / "imported").touch()
def net(*given, **named):
    (where / "called").write_text(repr((given, named)))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a module that can be imported, and leaves a file when it is, and when its function is called."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "trap_of_tests.py").write_text(TRAP)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    forget()


def forget() -> None:
    """As in a new process."""
    sys.modules.pop("trap_of_tests", None)
    importlib.invalidate_caches()


def sprung(trap: Path) -> list[str]:
    return sorted(file.name for file in trap.iterdir() if file.name in ("imported", "called"))


NET = {"_target_": "trap_of_tests.net"}
FLAG = "; --trust trap_of_tests allows what is in trap_of_tests"
CONFIG = DictConfig(OmegaConf.create({"model": {"_target_": "fedshare.models.Logistic"}}))


# What a config may name


CONF = world.ROOT / "experiments" / "conf"
ELSEWHERE = CONF / "cluster" / "ray.yaml"  # it sends the run's code and data to the machines that a config names


def test_another_s_config_names_no_cluster() -> None:
    with pytest.raises(UserError, match=r"cluster\._target_=.*: may not be named here"):
        trust._check(OmegaConf.to_container(OmegaConf.load(ELSEWHERE)), "cluster", Any, Trust())


@pytest.mark.parametrize("file", sorted({*CONF.glob("*/*.yaml")} - {ELSEWHERE}), ids=lambda f: f.stem)
def test_every_option_of_ours_may_be_named(file: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    node.pop("defaults", None)
    lacking = [name for name in trust._named(node) if find_spec(name.partition(".")[0]) is None]
    if not lacking:  # else what is missing is named
        trust._check(node, file.parent.name, Any, Trust())


ALLOWED = {
    "data of each client's": {
        "partition": {
            "_target_": "fedshare.data.partition.Own",
            "sources": [{"_target_": "fedshare.data.tables.table", "path": "a.csv"}],
        }
    },
    "a loss of torch's": {"task": {"_target_": "fedshare.tasks.Regression", "loss": {"_target_": "torch.nn.L1Loss"}}},
    "a function of torch's": {
        "task": {
            "_target_": "fedshare.tasks.Regression",
            "loss": {"_target_": "torch.nn.functional.l1_loss", "_partial_": True},
        }
    },
    "hydra's getter of one": {
        "task": {
            "_target_": "fedshare.tasks.Regression",
            "loss": {"_target_": "hydra.utils.get_method", "path": "torch.nn.functional.l1_loss"},
        }
    },
    "another optimizer": {
        "client": {
            "_target_": "fedshare.client.Training",
            "optimizer": {"_target_": "torch.optim.LBFGS", "_partial_": True},
        }
    },
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_what_the_docs_name_may_be_named(kind: str) -> None:
    trust.check(DictConfig(OmegaConf.create(ALLOWED[kind])), Trust(), "it")


GETTERS = [f"hydra.utils.get_{kind}" for kind in ("class", "method", "object", "static_method")]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a module of nobody's": ({"model": NET}, f"model._target_=trap_of_tests.net: may not be named here; {FLAG[2:]}"),
    "nested": ({"model": {"_target_": "fedshare.models.MLP", "hidden": [NET]}}, "model.hidden[0]._target_=trap"),
    "in _args_": ({"model": {"_target_": "torch.nn.Flatten", "_args_": [NET]}}, "model._args_[0]._target_=trap"),
    "partial": ({"model": {**NET, "_partial_": True}}, "model._target_=trap"),
    "not recursive": (
        {"partition": {"_target_": "fedshare.data.partition.Flwr", "_recursive_": False, "partitioner": {"x": NET}}},
        "partition.partitioner.x._target_=trap",
    ),
    "below no slot": ({"tracking": None, "more": [{"deep": NET}]}, "more[0].deep._target_=trap"),
    "a function of Python's": ({"model": {"_target_": "os.getcwd"}}, "model._target_=os.getcwd: may not be named here"),
    "an alias": (
        {"model": {"_target_": "torch.nn.functional.importlib.import_module", "name": "trap_of_tests"}},
        "is importlib.import_module, which may not be named here",
    ),
    "a C function by another path": ({"model": {"_target_": "torch.nn.functional.math.sqrt"}}, "is a builtin_function"),
    "a module that runs": ({"model": {"_target_": "fedshare.data.__main__.x"}}, "may not be named here"),
    "a class of a class": ({"model": {"_target_": "torch.nn.Linear.__class__"}}, "may not be named here"),
    "a file's writer of ours": (
        {"model": {"_target_": "fedshare.machine.files.write_atomically", "path": "x", "data": "y"}},
        "fedshare.machine.files.write_atomically: may not be named here",
    ),
    "our command": ({"model": {"_target_": "fedshare.experiments.cli.main"}}, "may not be named here"),
    "our reader of configs": (
        {
            "model": {
                "_target_": "fedshare.experiments.config.build.population",
                "config": "model: {_target_: os.getcwd}",
            }
        },
        "may not be named here",
    ),
    "what makes something else": (
        {"model": {"_target_": "fedshare.data.digits"}},
        "model._target_=fedshare.data.digits: is not for this key; must be Module",
    ),
    "what makes a part of something else": (
        {"data": {"load": {"_target_": "fedshare.data.mnist", "root": {"_target_": "fedshare.data.download.fetch"}}}},
        "data.load.root._target_=fedshare.data.download.fetch: ",
    ),
    "an optimizer for a model": ({"model": {"_target_": "torch.optim.SGD"}}, "is not for this key; must be Module"),
    "no name": ({"model": {"_target_": ["os.getcwd"]}}, "model._target_: must be the name of a class or a function"),
    "the environment": (
        {"data": {"load": {"_target_": "fedshare.data.mnist", "root": "${oc.env:HOME}"}}},
        "data.load.root=${oc.env:HOME}: only who wrote a config fills in what it refers to",
    ),
    "a name filled in": ({"a": "trap_of_tests.net", "model": {"_target_": "${a}"}}, "model._target_=${a}: only who"),
    **{
        f"{getter} {way}": (
            {"task": {"_target_": "fedshare.tasks.Regression", "loss": {"_target_": getter, **given}}},
            "task.loss._target_=trap_of_tests.net: may not be named here",
        )
        for getter in GETTERS
        for way, given in (("by name", {"path": NET["_target_"]}), ("by place", {"_args_": [NET["_target_"]]}))
    },
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_allowed_is_refused_in_one_line_and_not_even_imported(kind: str, trap: Path) -> None:
    config, said = REFUSED[kind]
    with pytest.raises(UserError) as error:
        trust.check(DictConfig(OmegaConf.create(config)), Trust(), "A config")
    line = str(error.value)
    assert line.startswith("A config: ")
    assert "\n" not in line
    assert said.removesuffix(FLAG[2:]) in line
    if "may not be named" in line:
        assert "; allowed: fedshare's strategies, models, data, ..., torch.nn, torch.optim, peft, " in line
    if said.endswith(FLAG[2:]):
        assert line.endswith(FLAG)
    assert not sprung(trap)


TRUSTED: dict[str, tuple[dict[str, Any], str | None]] = {
    "its function": (NET, None),
    "another's through it": ({"_target_": "trap_of_tests.os.getcwd"}, "is a builtin_function_or_method"),
    "another's class through it": ({"_target_": "trap_of_tests.Path"}, "is pathlib.Path, which may not be named here"),
}


@pytest.mark.parametrize("kind", TRUSTED)
def test_a_trusted_package_is_what_is_defined_in_it(kind: str, trap: Path) -> None:
    node, said = TRUSTED[kind]
    config = DictConfig(OmegaConf.create({"model": node}))
    for trusted in (Trust.of(["trap_of_tests"]), Trust.of([], str(trap))):
        if said is None:
            trust.check(config, trusted, "it")
        else:
            with pytest.raises(UserError, match=said):
                trust.check(config, trusted, "it")
    assert sprung(trap) == ["imported"]


def test_a_trusted_directory_is_what_is_imported_from_it(trap: Path) -> None:
    (trap / "json.py").write_text("")  # Python's own is found before
    sys.path.append(sys.path.pop(0))
    (trap / "a_package").mkdir()
    (trap / "a_package" / "__init__.py").touch()
    assert Trust.of([], str(trap)).packages == {"trap_of_tests", "a_package"}


def test_who_insists_on_a_config_trusts_what_that_names(trap: Path) -> None:
    config = DictConfig(OmegaConf.create({"model": NET}))
    trust.check(config, Trust.of([], None, config), "it")
    other = DictConfig(OmegaConf.create({"model": {"_target_": "trap_of_tests.os.getcwd"}}))
    with pytest.raises(UserError, match="may not be named here"):
        trust.check(other, Trust.of([], None, config), "it")


@pytest.mark.parametrize("name", ["", "my lab", "mylab/", "..", "mylab."])
def test_what_is_no_package_is_not_trusted(name: str) -> None:
    with pytest.raises(UserError, match=r"--trust .*: is not the name of a package"):
        Trust.of([name])


# Folders


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs a run of its own leaves it for the others."""
    return tmp_path_factory.mktemp("own")


@pytest.fixture
def own(original: Path, trap: Path, tmp_path: Path) -> RunFolder:
    """A run of this user's, with a model of the module's."""
    if not (original / "run").exists():
        (original / "conf" / "model").mkdir(parents=True)
        (original / "conf" / "model" / "mine.yaml").write_text("_target_: trap_of_tests.net\n")
        given = ["model=mine", "strategy=onebyte", "partition.clients=2", "clients_per_round=null", "rounds=1"]
        folder = ["workers=0", f"folder={original / 'run'}", "-cd", str(original / "conf")]
        assert fedshare("run", *given, *folder) == 0
        reset(trap)
    return copy(RunFolder(original / "run"), tmp_path / "run")


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    return {
        "replay": ("replay", str(folder)),
        "undo": ("undo", str(folder), "--peer", "0"),
        "export": ("export", str(folder), str(folder.with_name("whole.safetensors"))),
        "resume": ("resume", str(folder), "--rounds", "2"),
    }


def reset(trap: Path) -> None:
    forget()
    for name in sprung(trap):
        (trap / name).unlink()


def test_a_user_s_own_folder_needs_no_flag_and_another_s_does(
    own: RunFolder, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, command in enumerate(commands(copy(own, tmp_path / "same user").path).values()):
        reset(trap)
        says(capfd, *command)
        assert number or sprung(trap) == ["called", "imported"]
    (tmp_path / "whole.safetensors").unlink()
    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "another user"))
    foreign = copy(own, tmp_path / "foreign").path
    for command in commands(foreign).values():
        reset(trap)
        line = refuses(capfd, *command)
        assert line.startswith(f"{foreign}, whose config this user did not write: model._target_=trap_of_tests.net: ")
        assert line.endswith(FLAG)
        assert not sprung(trap)
        says(capfd, *command, "--trust", "trap_of_tests")
    assert fedshare("verify", str(foreign)) == 0, "it makes nothing, and needs no flag"


def test_a_config_that_was_changed_counts_as_another_s(
    own: RunFolder, trap: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own.config.write_text(own.config.read_text().replace("seed: 0", "seed: 1"))
    reset(trap)
    assert "whose config this user did not write" in refuses(capfd, "resume", own.path, "--rounds", "2")
    assert not sprung(trap)
    own.config.write_text(own.config.read_text().replace("seed: 1", "seed: 0"))
    says(capfd, "resume", own.path, "--rounds", "2")
    own.mark.unlink()
    assert "whose config this user did not write" in refuses(capfd, "resume", own.path, "--rounds", "3")


def test_a_resumed_run_stays_its_user_s_and_another_s_stays_another_s(
    own: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign = copy(own, tmp_path / "foreign")
    for rounds in ("2", "3"):
        says(capfd, "resume", own.path, "--rounds", rounds)
    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "another user"))
    says(capfd, "resume", foreign.path, "--rounds", "2", "--trust", "trap_of_tests")
    assert "trap_of_tests.net" in refuses(capfd, "resume", foreign.path, "--rounds", "3")


def test_a_folder_without_a_mark_goes_on_where_all_may_name_what_it_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fedshare("run", *SMALL, "workers=0", f"folder={tmp_path / 'run'}") == 0
    (tmp_path / "run" / "mark").unlink()
    says(capfd, "resume", tmp_path / "run", "--rounds", "2")


def test_a_pretraining_of_another_s(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    conf, folder = tmp_path / "conf", tmp_path / "backbone"
    (conf / "model").mkdir(parents=True)
    (conf / "model" / "mine.yaml").write_text("_target_: trap_of_tests.net\n")
    assert fedshare("pretrain", "model=mine", "epochs=1", "threads=1", f"folder={folder}", "-cd", str(conf)) == 0
    says(capfd, "pretrain", "--resume", folder)
    reset(trap)
    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "another user"))
    assert "model._target_=trap_of_tests.net" in refuses(capfd, "pretrain", "--resume", folder)
    assert not sprung(trap)
    says(capfd, "pretrain", "--resume", folder, "--trust", "trap_of_tests")


# The environment


def test_what_comes_of_the_environment_is_neither_stored_nor_shown_and_another_s_folder_reads_none(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_SECRET", "s3cr3t")
    folder, model = tmp_path / "run", tmp_path / "conf" / "model"
    model.mkdir(parents=True)
    (model / "mine.yaml").write_text("_target_: trap_of_tests.net\nkey: a-${oc.env:A_SECRET}\n")
    given = ["model=mine", "partition.clients=2", "rounds=1", "workers=0", f"folder={folder}"]
    assert fedshare("run", *given, "-cd", str(tmp_path / "conf")) == 0
    assert "a-s3cr3t" in (trap / "called").read_text(), "what is made gets it"
    assert RunFolder(folder).is_ours(text := (folder / "config.yaml").read_text())
    assert "key: a-${oc.env:A_SECRET}\n" in text
    says(capfd, "export", folder, whole := tmp_path / "whole.safetensors")
    written = [path for path in (whole, *folder.rglob("*")) if path.is_file()]
    assert not [path for path in written if b"s3cr3t" in path.read_bytes()]
    monkeypatch.delenv("A_SECRET")
    assert "Environment variable 'A_SECRET' not found" in refuses(capfd, "resume", folder, "--rounds", "2")
    monkeypatch.setenv("A_SECRET", "s3cr3t")
    (folder / "mark").unlink()
    line = refuses(capfd, "resume", folder, "--rounds", "2", "--trust", "trap_of_tests")
    assert "model.key=a-${oc.env:A_SECRET}: only who wrote a config fills in what it refers to" in line


KEPT = {
    "a text": ("${oc.env:A_NAME}", "${oc.env:A_NAME}", "Ann"),
    "with a default": ("${oc.env:NOT_THERE,a b-c}", "${oc.env:NOT_THERE,'a b-c'}", "a b-c"),
    "through another key": ("${name}", "${oc.env:A_NAME}", "Ann"),
    "read as a list": ("${oc.decode:${oc.env:A_LIST}}", "${oc.decode:${oc.env:A_LIST}}", ["x", "y"]),
    "a number": ("${oc.decode:${oc.env:A_NUMBER}}", 3, 3),
    "a number by another key": ("${seed}", 3, 3),
    "null": ("${oc.env:NOT_THERE,null}", None, None),
}


@pytest.mark.parametrize("kind", KEPT)
def test_texts_of_the_environment_stay_interpolations_and_numbers_are_what_they_were(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"A_NAME": "Ann", "A_LIST": "[x,y]", "A_NUMBER": "3"}.items():
        monkeypatch.setenv(name, value)
    asked, kept, value = KEPT[kind]
    line = ["seed=${oc.env:A_NUMBER}", "name=${oc.env:A_NAME}", f'+tracking.more="{asked}"']
    config = compose.resolved(line)
    assert (config.seed, config.name) == (3, "Ann")
    assert OmegaConf.to_container(config)["tracking"]["more"] == kept  # type: ignore[index,call-overload]
    assert config.tracking.more == value
    again = OmegaConf.create(OmegaConf.to_yaml(config))
    assert again.tracking.more == value


def test_a_matrix_stores_none_of_it(trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "s3cr3t")
    folder, model = tmp_path / "matrix", tmp_path / "conf" / "model"
    model.mkdir(parents=True)
    (model / "mine.yaml").write_text("_target_: trap_of_tests.net\nkey: a-${oc.env:A_SECRET}\n")
    given = [
        "base=['data=digits']",
        "model=mine",
        "+model.more=b-${oc.env:A_SECRET}",
        "rounds=1",
        "client.epochs=1",
        "workers=0",
    ]
    axes = ["attacks=none", "defences=fedavg", "partitions=iid", "seeds=[0]", "partition.clients=3"]
    assert fedshare("matrix", *given, *axes, f"folder={folder}", "-cd", str(tmp_path / "conf")) == 0
    assert "a-s3cr3t" in (called := (trap / "called").read_text())
    assert "b-s3cr3t" in called
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 1
    assert not [path for path in written if b"s3cr3t" in path.read_bytes()]


# A deployment


class Liar:
    """A server that welcomes client 0 whatever that insists on, tells it `config`, and asks it to take part."""

    def __init__(self, config: Any, digest: str = "") -> None:
        pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
        import fedshare
        from fedshare.transport.flower.stream import StreamGrid
        from fedshare.transport.stream.server import StreamServer
        from fedshare.transport.stream.settings import Settings

        told = json.dumps(config if isinstance(config, dict) else {"config": OmegaConf.to_yaml(config)})
        settings = Settings(version=fedshare.__version__, config=told, config_sha256=digest, clients=1)
        self.server = StreamServer("127.0.0.1:0", None, settings, lambda line: None)
        self.server.start()
        self.grid = StreamGrid(self.server)

    def meets(self, folder: Path, *arguments: str, **environ: str) -> tuple[int, str]:
        """The exit status of a client, and what it said."""
        from flwr.app import Message

        import fedshare
        from deployed import Command, eventually
        from fedshare._proto.payload_pb2 import Invitation
        from fedshare.transport.flower.grid import node_of
        from fedshare.transport.flower.records import wrap

        arguments = ("client", self.server.address, *arguments, "--id", "0", "--gpu", "none")
        try:
            with Command(folder, *arguments, **environ) as client:
                eventually(lambda: bool(self.server.present()) or client.process.poll() is not None, "the client")
                invitation = Invitation(version=fedshare.__version__).SerializeToString()
                (id,) = self.grid.push_messages([Message(wrap(invitation), node_of(0), "query.attend")])
                while client.process.poll() is None and not self.grid.pull_messages([id]):
                    self.grid.wait(0.2)
                self.server.close("")
                return client.wait(), client.said
        finally:
            self.server.close("")


def config(*overrides: str) -> DictConfig:
    return compose.resolved([*SMALL, *overrides])


def line_of(said: str) -> str:
    """What the client's command ended with."""
    last = said.splitlines()[-1]
    assert last.startswith("fedshare: "), said
    return last


@pytest.mark.process
def test_a_client_that_insists_compares_the_config_itself(tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from fedshare.experiments.hosts import agreement

    mine, theirs = config(), config("seed=7")
    status, said = Liar(theirs, agreement.digest(mine)).meets(tmp_path, *SMALL)
    assert status == 2, said
    digests = [agreement.digest(one)[:12] for one in (theirs, mine)]
    assert line_of(said).endswith(
        f": the server's config has the digest {digests[0]}, and the one that this client insists on {digests[1]}"
    )


HOSTILE = {
    "a module": {"model": NET},
    "hydra's getter": {"model": {"_target_": "hydra.utils.get_method", "path": "trap_of_tests.net"}},
    "deep inside": {"model": {"_target_": "torch.nn.Sequential", "_args_": [NET]}},
    "overrides": None,
    "the environment": {
        "name": "mine",
        "data": {"load": {"_target_": "fedshare.data.mnist", "root": "${oc.env:A_SECRET}"}},
    },
}


@pytest.mark.process
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_client_makes_nothing_that_a_server_may_not_name(kind: str, trap: Path, tmp_path: Path) -> None:
    asked = HOSTILE[kind]
    if asked is None:
        told: Any = {"overrides": "+model.x=${oc.env:A_SECRET}"}
    else:
        told = DictConfig(OmegaConf.create({**OmegaConf.to_container(config()), **asked}))  # type: ignore[dict-item]
    status, said = Liar(told).meets(tmp_path, PYTHONPATH=f"{world.ROOT}:{trap}", A_SECRET="s3cr3t")
    assert not sprung(trap), said
    assert status == 2, said
    assert ": the server's config" in line_of(said)
    assert "s3cr3t" not in said


@pytest.mark.process
def test_a_client_trusts_a_package_that_it_is_told_to(trap: Path, tmp_path: Path) -> None:
    told = DictConfig(OmegaConf.create({**OmegaConf.to_container(config()), "model": NET}))  # type: ignore[dict-item]
    environ = {"PYTHONPATH": f"{world.ROOT}:{trap}"}
    status, said = Liar(told).meets(tmp_path, "--trust", "trap_of_tests", **environ)
    assert status == 0, said
    assert sprung(trap) == ["called", "imported"]


def test_what_this_user_s_server_tells_is_not_confined_and_what_another_s_does_is(
    trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from fedshare.experiments.hosts import agreement

    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "mine"))
    told = OmegaConf.to_yaml(OmegaConf.create({**OmegaConf.to_container(config()), "model": NET}))  # type: ignore[dict-item]
    marked = {"config": told, "mark": marks.mark(told)}
    agreement.admit(marked, None, Trust(), "the server's config")
    for other in ({"config": told}, {**marked, "config": told + "\n"}, {**marked, "mark": "00" * 32}):
        with pytest.raises(UserError, match="may not be named here"):
            agreement.admit(other, None, Trust(), "the server's config")
    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "another's"))
    with pytest.raises(UserError, match="may not be named here"):
        agreement.admit(marked, None, Trust(), "the server's config")
    assert not sprung(trap)


def options(*arguments: str) -> Any:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from fedshare.experiments.hosts.deploy_options import parser

    return parser("server").parse_intermixed_args(list(arguments))


def test_a_server_tells_what_clients_need_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "s3cr3t")
    given = options(*SMALL, "+tracking.key=${oc.env:A_SECRET}", "+tracking.word=a-word-of-the-server-s")
    from fedshare.experiments.hosts import serving

    run_config, told, digest, _ = serving.asked(given)
    assert "key: ${oc.env:A_SECRET}" in str(run_config["config"])
    assert "s3cr3t" not in str(run_config) + str(told)
    assert "tracking" not in str(told) and "a-word" not in str(told)  # noqa: PT018
    from fedshare.experiments.hosts import agreement

    assert digest == agreement.digest(config()) == agreement.digest(agreement.config_of(told))


def test_a_server_goes_on_in_its_user_s_folder_and_not_in_another_s(
    own: RunFolder, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flwr", reason="flwr is not installed; the extra fedshare[deploy] has it")
    from fedshare.experiments.hosts import serving

    assert "trap_of_tests.net" in str(serving.asked(options("--resume", str(own.path)))[1])
    monkeypatch.setenv("FEDSHARE_STATE", str(tmp_path / "another user"))
    reset(trap)
    with pytest.raises(UserError, match=r"whose config this user did not write: model\._target_=trap_of_tests\.net"):
        serving.asked(options("--resume", str(own.path)))
    assert not sprung(trap)
    serving.asked(options("--resume", str(own.path), "--trust", "trap_of_tests"))


def test_a_server_does_not_begin_with_what_clients_would_have_to_fill_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_FOLDER", "/srv/mnist")
    given = options("data=mnist", "+data.load.root=${oc.env:A_FOLDER}", "partition.clients=2")
    from fedshare.experiments.hosts import serving

    with pytest.raises(UserError, match=r"data.load.root=\$\{oc.env:A_FOLDER\}: a client does not read its"):
        serving.asked(given)
