"""A number means the same in a YAML file and on the command line."""

import math
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from fedshare.experiments.config.application import hydra
from fedshare.experiments.config.compose import resolved

NUMBERS = ["inf", "-inf", "nan", "1e-3", ".5", "1_000.5", "+inf", "Inf", "NaN", "2E5", "1e3"]


def target(rate, name: str, bound: float | None = None, rates: list[float] | None = None) -> None:  # type: ignore[no-untyped-def]
    """What a config of somebody's own names."""


TARGET = f"{__name__}.target"


def by_file(folder: Path, value: str, name: str = "any") -> DictConfig:
    """The config where a YAML file of one's own says `value`."""
    write(folder, value, name)
    return resolved(["strategy=own"], app=hydra(str(folder)))


def write(folder: Path, value: str, name: str = "any") -> None:
    (folder / "strategy").mkdir(exist_ok=True)
    numbers = f"rate: {value}\nname: {name}\nbound: {value}\nrates: [1.0, {value}]\nmore: {{a: {value}}}\n"
    (folder / "strategy" / "own.yaml").write_text(f"_target_: {TARGET}\n{numbers}")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """The config where the file says another number than any test's."""
    return by_file(tmp_path_factory.mktemp("said"), "7.0")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_in_a_file_is_the_command_line_s(number: str, said: DictConfig, tmp_path: Path) -> None:
    write(tmp_path, "7.0")
    given = {"rate": number, "bound": number, "rates": f"[1.0,{number}]", "more.a": number}
    line = resolved(
        ["strategy=own", *(f"strategy.{key}={value}" for key, value in given.items())], app=hydra(str(tmp_path))
    )
    file = by_file(tmp_path, number)
    assert OmegaConf.to_yaml(file) == OmegaConf.to_yaml(line) != OmegaConf.to_yaml(said)
    assert isinstance(file.strategy.bound, float)
    assert isinstance(file.strategy.rate, float)


@pytest.mark.parametrize("text", ["'1e-3'", "'2.5'", "'inf'"])
def test_what_is_in_quotes_is_a_number_where_one_is_asked_for(text: str, tmp_path: Path) -> None:
    assert by_file(tmp_path, text).strategy.bound == float(text.strip("'"))


@pytest.mark.parametrize("text", ["inf", "'1e-3'", "nan"])
def test_where_a_text_is_asked_for_it_stays_one(text: str, tmp_path: Path) -> None:
    assert by_file(tmp_path, "1.0", name=text).strategy.name == text.strip("'")


@pytest.mark.parametrize("text", ["infinity", "info", "nano", "'1e-3'", "1e-3x", "0x10g"])
def test_other_words_stay_texts(text: str, tmp_path: Path) -> None:
    assert by_file(tmp_path, text).strategy.rate == text.strip("'")


def test_an_environment_s_number_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "1e-3")
    assert by_file(tmp_path, "'${oc.env:RATE}'").strategy.bound == 1e-3


def test_without_a_bound_is_said_with_inf_in_a_preset_too(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [config, override client: dpsgd, _self_]\n"
        "client: {privacy: {noise_multiplier: 0.0, max_grad_norm: inf}}\n"
    )
    config = resolved([], "mine", hydra(str(tmp_path)))
    line = ["client=dpsgd", "client.privacy.noise_multiplier=0.0", "client.privacy.max_grad_norm=inf"]
    assert config.client == resolved(line).client
    assert config.client.privacy.max_grad_norm == math.inf
