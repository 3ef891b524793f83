"""The model of a config: initialised, overlaid with its weights, and partitioned by `peft`."""

import torch
from omegaconf import DictConfig

from fedshare import seeds
from fedshare.data.dataset import Dataset
from fedshare.errors import UserError, first_line
from fedshare.experiments.config.examples import plain
from fedshare.experiments.config.instantiate import make
from fedshare.experiments.config.laying import laid
from fedshare.peft import Method
from fedshare.tasks import Task, models
from fedshare.training.parts import Parts
from fedshare.weights import Given


def tuned(config: DictConfig, dataset: Dataset, task: Task) -> tuple[torch.nn.Module, Parts, Given | None]:
    """Return the initial model, its partition, and which of its tensors come from weights, if any.

    Weights are of the plain model, or, like those of a run, of the model with the additions of `peft`.
    """
    method = make(config.peft, "peft", Method)
    model = _drawn(config, dataset, task)
    given, refusal = None, None
    try:
        given = laid(config, model, method.head)
    except UserError as error:
        refusal = error
    names = _names(model)
    with seeds.scope(config.seed, "peft"):  # a separate stream: additions do not depend on the model's draws
        model, parts = method.tune(model)
    if refusal is not None:
        now = _names(model)
        if set(names.values()) >= set(now.values()):
            raise refusal
        given = laid(config, model, method.head, refusal, {n: now[one] for one, n in names.items() if one in now})
    _show(model, dataset, task, "peft: the model it gives")
    return model, parts, given


def backbone(config: DictConfig, dataset: Dataset, task: Task) -> torch.nn.Module:
    """Return the model alone, with its weights if there are any."""
    model = _drawn(config, dataset, task)
    laid(config, model, None)
    return model


def _drawn(config: DictConfig, dataset: Dataset, task: Task) -> torch.nn.Module:
    with seeds.scope(config.seed, "model"):
        model: torch.nn.Module = make(config.model, "model", torch.nn.Module)
        _show(model, dataset, task, "model:")
    if isinstance(model, torch.jit.ScriptModule):  # torch gives no access to its parts
        raise UserError(
            "model: is scripted, and cannot be divided into its parts; name what torch.jit.script was given"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("model: has no parameter to train")
    return model


def _names(model: torch.nn.Module) -> dict[int, str]:
    """Names of the model's tensors by identity."""
    return {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}


def _show(model: torch.nn.Module, dataset: Dataset, task: Task, what: str) -> None:
    """Run it on one example: a model of the wrong shape is reported now, and a lazy one learns its shape."""
    inputs, targets = dataset.pool.batch(slice(0, 1))
    try:
        with torch.no_grad():
            found = list(models.select(models.call(model.eval(), inputs), task.output)[0].shape)
    except UserError:
        raise
    except Exception as error:  # third-party model
        taken = f"{dataset.name}'s inputs of shape {plain(dataset.shape)}"
        raise UserError(f"{what} cannot take {taken}: {first_line(error)}") from error
    if found not in (expected := task.shapes(targets, dataset.classes)):
        wanted = " or ".join(map(str, expected))
        raise UserError(f"{what} gives outputs of shape {found}, not {wanted}, for {dataset.name}")
