"""The weights of a config, and laying them over its model."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from omegaconf import DictConfig, OmegaConf

from fedshare import weights
from fedshare.errors import UserError
from fedshare.runs import RunFolder
from fedshare.tensors import Tensors
from fedshare.weights import Given


def laid(
    config: DictConfig,
    model: torch.nn.Module,
    head: str | None,
    refusal: UserError | None = None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> Given | None:
    """Overlay `model` with the config's weights and return what they gave; of `head` only tensors that fit are taken.

    Weights of the model before tuning are found by their names then, mapped to the new ones by `renamed`.
    """
    if config.weights is None:
        return None

    def read() -> Tensors:
        return {renamed.get(name, name): tensor for name, tensor in _weights(str(config.weights)).items()}

    try:
        drawn = weights.overlay(model, read(), f"weights={config.weights}", head or weights.HEAD)
    except UserError as error:
        raise refusal or error from None
    types = {name: tensor.dtype for name, tensor in model.state_dict().items() if name not in drawn}
    return Given(config.weights, read, types)


def _weights(name: str) -> Tensors:
    """Read the weights `name`. Frozen or local tensors missing from a run's model come from its initial model."""
    path, tensors = weights.locate(name), weights.read(name)
    run = RunFolder(path.parent)
    if path not in (run.model, run.best_model) or not (run.initial.exists() and run.config.exists()):
        return tensors
    began = OmegaConf.select(OmegaConf.load(run.config), "weights")
    return (_weights(began) if began else {}) | weights.read(str(run.initial)) | tensors
