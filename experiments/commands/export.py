"""`fedshare export`: the complete model of a run, backbone included, as one self-contained file."""

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import nn

from fedshare.errors import UserError
from fedshare.experiments.beginnings import begin, streams, warn
from fedshare.experiments.config import build
from fedshare.experiments.config.stored import stored
from fedshare.experiments.config.trust import Trust
from fedshare.machine.files import write_atomically
from fedshare.runs import RunFolder, checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.strategy import Purpose
from fedshare.tensors import Tensors


def export(run: str, file: str, client: int | None, trusted: Trust | None = None) -> None:
    """Export the global model, or that of `client`. Raises UserError if there is none.

    `trusted`: as for `stored`.
    """
    folder, path = RunFolder.open(run), target(file)
    config = stored(folder, trusted=trusted)
    with streams(folder):
        module = _model(folder, config, client)
    print(write(path, module, config))


def _model(folder: RunFolder, config: DictConfig, client: int | None) -> nn.Module:
    population = build.population_of(config)
    begin(folder, population, config)
    scratch = population.scratch
    if client is None:
        scratch.load(load_file(folder.model) if folder.model.exists() else _global(folder))
    else:
        last = _last(folder)
        if last.remote:
            raise UserError(f"{folder.path}: its clients keep their own models")
        if not 0 <= client < len(population.shares):
            raise UserError(f"--client {client}: there are {len(population.shares)}, from 0 on")
        one = population.client(client, last.clients.get(client, {}))
        download = population.strategy.download(last.server, client, Purpose.EVALUATE)
        if download is None:
            raise UserError(f"--client {client}: gets no model any more")
        population.strategy.apply(one, download)
        population.strategy.evaluate(one, last.round)  # personalises it
    return scratch.module


def target(file: str) -> Path:
    """Return the file to write. Raises UserError if it cannot be written."""
    path = Path(file)
    if path.suffix != ".safetensors":
        raise UserError(f"{file}: must end in .safetensors")
    if path.exists():
        raise UserError(f"{file}: is there already")
    return path


def write(path: Path, module: nn.Module, config: DictConfig) -> str:
    """Write the module as it is now; return a sentence about it."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    write_atomically(path, save_tensors(tensors, {"config": json.dumps(OmegaConf.to_container(config))}))
    return f"{path}: {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"


def _last(folder: RunFolder) -> Checkpoint:
    last = checkpoint.latest(folder.checkpoints, warn)
    if last is None:
        raise UserError(f"{folder.path}: has no checkpoint yet")
    return last


def _global(folder: RunFolder) -> Tensors:
    params: Tensors | None = _last(folder).server.get("params")
    if params is None:
        raise UserError(f"{folder.path}: has no global model; --client N has one")
    return params
