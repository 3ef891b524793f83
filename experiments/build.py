"""From a resolved config to the objects of a run, here and in each worker process."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fedshare import seeds
from fedshare.client import Training
from fedshare.data.dataset import Dataset
from fedshare.data.partition.base import Partition
from fedshare.errors import UserError
from fedshare.rounds import Schedule
from fedshare.scratch import Scratch
from fedshare.simulation import Partitioned, Population
from fedshare.strategy import Strategy

from .instantiate import make


def population(config: str) -> Population:
    """Everyone who may take part, from a resolved config as YAML: the same in every process that asks."""
    return population_of(DictConfig(OmegaConf.create(config)))


def population_of(config: DictConfig) -> Population:
    strategy = _of(Strategy, config, "strategy")
    training = _of(Training, config, "client")
    partition: Partition = _of(Partition, config, "partition")
    dataset = data(config)
    shares = Partitioned(dataset, partition, config.seed)
    with seeds.scope(config.seed, "model"):
        module = _of(torch.nn.Module, config, "model")
    scratch = Scratch(module, _device(config.device))
    _try(scratch, dataset)
    return Population(strategy, scratch, training, shares, config.seed)


def data(config: DictConfig) -> Dataset:
    dataset: Dataset = make(config.data.load, "data.load")
    for key, found in (("shape", list(dataset.shape)), ("classes", dataset.classes)):
        if (stated := OmegaConf.to_container(config.data)[key]) != found:  # type: ignore[index, call-overload]
            raise UserError(f"data.{key}={stated}: {dataset.name} has {found}")
    return dataset


def schedule(config: DictConfig, sizes: list[int]) -> Schedule:
    return Schedule(
        rounds=config.rounds,
        seed=config.seed,
        clients_per_round=config.clients_per_round,
        evaluate_every=config.evaluate_every,
        max_examples=max(sizes),  # who claims more than anyone was given is lying
    )


def _of(kind: type[Any], config: DictConfig, key: str) -> Any:
    found = make(config[key], key)
    if not isinstance(found, kind):
        raise UserError(
            f"{key}._target_={config[key]['_target_']}: gives a {type(found).__name__}, not a {kind.__name__}"
        )
    return found


def _device(name: str) -> torch.device:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def _try(scratch: Scratch, dataset: Dataset) -> None:
    """Show the model one example, so that one of the wrong shape is named now and not by a worker in round 1."""
    inputs, targets = dataset.pool.to(scratch.device).batch(slice(0, 1))
    scratch.module.eval()
    try:
        with torch.no_grad():
            logits = scratch.module(inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model: cannot take {dataset.name}'s inputs of shape {list(dataset.shape)}: {reason}"
        ) from error
    expected = (*targets.shape, dataset.classes)
    if tuple(logits.shape) != expected:
        raise UserError(f"model: gives logits of shape {list(logits.shape)}, not {list(expected)} for {dataset.name}")
