"""Every config composes, what it names can be made, and the command line still has the last word."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError
from torch import Tensor, nn

import optional
import world
from fedshare.client import Training
from fedshare.data.partition import Partition
from fedshare.errors import UserError
from fedshare.experiments.config import build
from fedshare.experiments.config.application import CONF, SINGLE, hydra
from fedshare.experiments.config.compose import resolved
from fedshare.experiments.config.instantiate import check, make
from fedshare.experiments.config.slots import PARTS
from fedshare.experiments.config.sweeps import jobs
from fedshare.strategy import Strategy

OPTIONS = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml"))]
# Their keys come from a text data set.
LANGUAGE = {"language_model", "stories260k", "text_cnn", "text_transformer", "transformers"}
# What data of one's own leave open.
OPEN = {"shape": "[3,8,8]", "classes": "4", "clients": "3", "load.path": "mine", "load.inputs": "x", "load.target": "y"}


def given(group: str, option: str) -> list[str]:
    """The overrides that choose an option, with what it requires."""
    if group != "data":
        return [f"{group}={option}"]
    config = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    values = config | {f"load.{key}": value for key, value in (config["load"] or {}).items()}
    return [f"data={option}", *(f"data.{key}={value}" for key, value in OPEN.items() if values.get(key, 0) is None)]


@pytest.mark.parametrize(("group", "option"), [optional.option(*pair) for pair in OPTIONS])
def test_every_option_composes_and_fits_what_it_names(group: str, option: str) -> None:
    text = ["data=sst_trees"] if option in LANGUAGE else []
    config = resolved([*text, *given(group, option)])
    for key in (*PARTS, "partition", "model"):
        check(config[key], key)
    check(config.data.load, "data.load")
    for key, kind in (("strategy", Strategy), ("partition", Partition), ("client", Training)):
        if "flwr" not in option:  # needs its extra
            assert isinstance(make(config[key], key), kind)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_entry_composes(name: str) -> None:
    key = {"pretrain": "epochs", "matrix": "timeout"}.get(name.split("_")[0], "rounds")
    assert resolved([], name)[key] > 0


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "data"])
def test_all_data_can_be_pretrained_on(option: str) -> None:
    config = resolved(given("data", option), "pretrain")
    for key in ("model", "data", "optimizer", "augment"):
        check(config[key], key)


@pytest.mark.parametrize("name", ["config", "pretrain"])
def test_every_key_of_the_root_has_a_comment(name: str) -> None:
    lines = (CONF / f"{name}.yaml").read_text().split("_self_", 1)[1].split("\nhydra:", 1)[0].splitlines()
    keys = [line for line in lines if ":" in line and not line.strip().startswith(("name:", "_target_:"))]
    assert len(keys) >= 9
    assert all(" # " in line for line in keys), keys


def test_every_group_is_in_the_root() -> None:
    groups = {group for group, _ in OPTIONS}
    assert groups <= resolved([]).keys()


def test_a_data_set_brings_its_model_and_the_command_line_wins() -> None:
    assert resolved(["data=mnist"]).model._target_ == "fedshare.models.CNN"
    assert resolved(["data=mnist", "model=mlp"]).model._target_ == "fedshare.models.MLP"
    assert resolved(["model=mlp", "data=mnist"]).model._target_ == "fedshare.models.MLP"
    shakespeare = resolved(["data=shakespeare"])
    assert shakespeare.partition._target_ == "fedshare.data.partition.Natural"
    assert shakespeare.model.causal is True
    assert resolved(["data=shakespeare", "partition=iid"]).partition._target_ == "fedshare.data.partition.Iid"


def test_resolved_holds_nothing_of_hydra_and_nothing_open() -> None:
    config = resolved(["seed=3"])
    assert "hydra" not in config
    assert "folder" not in config
    assert config.name == "fedavg-digits-dirichlet"
    assert config.partition.clients == config.data.clients == 20


def test_a_single_run_composes_its_config_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["seed=3", "data=mnist", "hydra.verbose=true"]
    compose, composed = ConfigLoaderImpl.load_configuration, list[list[str]]()

    def counted(loader: ConfigLoaderImpl, name: str, overrides: list[str], *more: Any) -> DictConfig:
        composed.append(overrides)
        return compose(loader, name, overrides, *more)

    wanted = compose(hydra().config_loader, "config", [*given, SINGLE], RunMode.RUN)
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    app = hydra()
    assert app.get_mode("config", given) is None
    for from_shell in (False, True):  # to check it, and to run it
        config = app.compose_config("config", [*given, SINGLE], RunMode.RUN, from_shell=from_shell)
        assert config.hydra.mode is RunMode.RUN
        assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(wanted)
        config.seed = 4  # of a copy
        with pytest.raises(ConfigAttributeError):
            config.sed = 4
    assert composed == [given]
    for overrides in ([*given, "seed=5", SINGLE], [*given, SINGLE]):
        app.compose_config("config", overrides, RunMode.RUN)
    assert composed == [given, [*given, "seed=5", SINGLE]]


def test_what_cannot_be_composed_is_tried_as_a_run_and_as_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    given, modes = ["data=nothing"], list[RunMode]()
    compose = ConfigLoaderImpl.load_configuration

    def counted(loader: ConfigLoaderImpl, name: str, overrides: list[str], mode: RunMode, *more: Any) -> DictConfig:
        modes.append(mode)
        return compose(loader, name, overrides, mode, *more)

    with pytest.raises(HydraException) as wanted:
        compose(hydra().config_loader, "config", [*given, SINGLE], RunMode.RUN)
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    app = hydra()
    assert app.get_mode("config", given) is None
    with pytest.raises(type(wanted.value)) as raised:
        app.compose_config("config", [*given, SINGLE], RunMode.RUN)
    assert str(raised.value) == str(wanted.value)
    assert modes == [RunMode.RUN, RunMode.MULTIRUN]


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        (["seed=3"], None),
        (["hydra.mode=RUN"], RunMode.RUN),
        (["hydra.mode=MULTIRUN"], RunMode.MULTIRUN),
        (["hydra.mode=MULTIRUN", "seed=0,1"], RunMode.MULTIRUN),
        (["seed=0,1"], None),
        (["data=nothing"], None),
        (["~hydra.mode"], None),
    ],
)
def test_whether_it_is_a_sweep_is_as_hydra_has_it(overrides: list[str], mode: RunMode | None) -> None:
    app = hydra()
    assert app.get_mode("config", overrides) is Hydra.get_mode(app, "config", overrides) is mode


def test_a_sweep_becomes_its_jobs(tmp_path: Path) -> None:
    assert jobs(["seed=0,1", "strategy=fedavg,local", "rounds=2"]) == [
        ["seed=0", "strategy=fedavg", "rounds=2"],
        ["seed=0", "strategy=local", "rounds=2"],
        ["seed=1", "strategy=fedavg", "rounds=2"],
        ["seed=1", "strategy=local", "rounds=2"],
    ]
    assert jobs(["seed=range(2)"]) == [["seed=0"], ["seed=1"]]
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nhydra: {sweeper: {params: {seed: '0,1'}}}\n")
    assert jobs(["rounds=2"], "mine", hydra(str(tmp_path))) == [["seed=0", "rounds=2"], ["seed=1", "rounds=2"]]
    other = "hydra.sweeper._target_=another.Sweeper"
    assert jobs([other, "seed=interval(0,9)", "rounds=2"]) == [[other, "rounds=2"]]


@pytest.mark.parametrize("layer", ["{_target_: torch.nn.Linear, in_features: 64", "{_target_: torch.nn.LazyLinear"])
def test_any_torch_module_is_a_model(layer: str) -> None:
    model = f"{{_target_: torch.nn.Sequential, _args_: [{{_target_: torch.nn.Flatten}}, {layer}, out_features: 10}}]}}"
    first, again = (build.population_of(resolved(["~model", f"+model={model}"])).scratch.flat for _ in range(2))
    assert first.numel() == 650
    assert first.equal(again)


class Threads(nn.Module):
    """A model whose first bits depend on how many threads there are, as sums and decompositions of matrices do."""

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.threads = nn.Parameter(torch.full((10,), float(torch.get_num_threads())))

    def forward(self, x: Tensor) -> Tensor:
        return self.threads.expand(len(x), -1)


def test_the_model_does_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        population = build.population_of(resolved(["model._target_=test_configs.Threads"]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert population.scratch.initial["threads"].tolist() == [1.0] * 10


def fail(message: str) -> None:
    raise ValueError(message)


def test_what_cannot_be_made_is_one_line() -> None:
    node = OmegaConf.create({"_target_": "test_configs.fail", "message": "\nno such thing\nsee the manual"})
    with pytest.raises(UserError) as raised:
        make(node, "strategy")
    assert str(raised.value) == "strategy: no such thing"


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("peft.LoHaConfig", "peft", "peft"),
        ("transformers.BertModel", "transformers", "peft"),
        ("timm.create_model", "timm", "timm"),
        ("opacus.PrivacyEngine", "opacus", "dp"),
        ("flwr_datasets.partitioner.IidPartitioner", "flwr_datasets", "partitioners"),
        ("byzfl.Average", "byzfl", "byzfl"),
        ("numba.njit", "numba", "fast"),
        ("pandas.read_csv", "pandas", "tables"),
        ("fedshare.peft.library.Library", "peft", "peft"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    target: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fedshare.peft.library", raising=False)
    monkeypatch.delattr("fedshare.peft.library", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as raised:
        check(OmegaConf.create({"config": {"_target_": target}}), "peft")
    line = f"peft.config._target_={target}: {package} is not installed: pip install 'fedshare[{extra}]'"
    assert str(raised.value) == line


def test_what_an_installed_package_lacks_is_no_extra() -> None:
    for target in ("fedshare.models.Nothing", "nobody_has_this.Model"):
        with pytest.raises(UserError, match=f"^model._target_={target}: cannot be imported: "):
            check(OmegaConf.create({"_target_": target}), "model")


def test_the_model_is_the_same_in_every_process_and_moves_with_the_seed() -> None:
    first, again, other = (build.population_of(resolved([f"seed={seed}"])).scratch.flat for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_conf_is_where_the_door_says() -> None:
    assert Path(world.ROOT / "experiments" / "conf") == CONF
