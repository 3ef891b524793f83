"""The option files of the model group: each builds its model, and says what every argument means."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn

from fedshare.errors import UserError

OPTIONS = sorted((Path(__file__).parents[1] / "experiments" / "conf" / "model").glob("*.yaml"))


def configured(option: str, **data: Any) -> Any:
    """The model of an option file, beside `data`, as hydra would compose them."""
    path = next(path for path in OPTIONS if path.stem == option)
    return OmegaConf.create({"data": data, "model": OmegaConf.load(path)}).model


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_yaml_names_every_argument_with_its_default_and_its_meaning(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    arguments = inspect.signature(get_class(config.pop("_target_"))).parameters
    assert list(config) == list(arguments)
    assert all(" # " in line for line in path.read_text().splitlines()[1:])
    given = {"resnet8": {"depth": 8}, "language_model": {"causal": True}}.get(path.stem, {})
    for name, argument in arguments.items():
        if argument.default is not inspect.Parameter.empty:
            default = list(argument.default) if isinstance(argument.default, tuple) else argument.default
            assert config[name] == given.get(name, default), name


@pytest.mark.parametrize("option", ["logistic", "mlp", "cnn", "resnet8", "resnet20", "vit"])
def test_yaml_builds_an_image_model(option: str) -> None:
    model = instantiate(configured(option, shape=[1, 8, 8], classes=10))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("option", "shape"), [("text_cnn", (2, 3)), ("text_transformer", (2, 3)), ("language_model", (2, 9, 3))]
)
def test_yaml_builds_a_text_model(option: str, shape: tuple[int, ...]) -> None:
    model = instantiate(configured(option, vocabulary=30, length=9, classes=3))
    assert model(torch.arange(18).view(2, 9)).shape == shape


def test_yaml_says_what_is_wrong_in_one_line() -> None:
    with pytest.raises(
        Exception, match=r"MLP: hidden is \[0\]; allowed is a list of one or more whole numbers"
    ) as raised:
        instantiate(configured("mlp", shape=[8], classes=2), hidden=[0])
    assert isinstance(raised.value.__cause__ or raised.value, UserError)


def test_any_torch_module_is_a_model() -> None:
    model = instantiate(
        OmegaConf.create(
            {
                "data": {"shape": [1, 8, 8], "classes": 10},
                "model": {
                    "_target_": "torch.nn.Sequential",
                    "_args_": [
                        {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 3},
                        {"_target_": "torch.nn.ReLU"},
                        {"_target_": "torch.nn.Flatten"},
                        {"_target_": "torch.nn.Linear", "in_features": 144, "out_features": "${data.classes}"},
                    ],
                },
            }
        ).model
    )
    assert isinstance(model, nn.Sequential)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
