"""`fedshare pretrain`: train a model centrally on all data, and write its folder."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save as save_tensors
from torch import nn

from fedshare import weights
from fedshare.data.dataset import Dataset
from fedshare.errors import RunHalted, UserError, first_line
from fedshare.experiments.beginnings import check_streams, create, warn, warn_of_versions
from fedshare.experiments.commands.run import Work, run
from fedshare.experiments.config import examples, instantiate
from fedshare.experiments.config.device import device_of
from fedshare.experiments.config.instantiate import make
from fedshare.experiments.config.model import backbone
from fedshare.experiments.config.own import add_config_dir, add_trust, importable
from fedshare.experiments.config.schema import Pretraining
from fedshare.experiments.config.stored import stored
from fedshare.experiments.config.trust import Trust
from fedshare.experiments.options import Parser
from fedshare.experiments.signals import terminable
from fedshare.machine import devices
from fedshare.machine.files import append, on_disk, write_atomically
from fedshare.machine.threads import one_thread, threads
from fedshare.pretrain import Augment, Epoch, Plan, pretrain
from fedshare.report.units import decimal
from fedshare.runs import RunFolder, checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.simulation import Part
from fedshare.state import State
from fedshare.tasks import Task
from fedshare.training.scratch import Scratch


class Folder(RunFolder):
    """A run's folder, but its config is ``pretrain.yaml``, and it has no digest chain."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self.config = self.path / "pretrain.yaml"

    def check_new(self) -> None:
        begun = {".lock", self.versions.name}  # left by a process killed before anything was written
        found = [entry for entry in self.path.iterdir() if entry.suffix != ".tmp"] if self.path.is_dir() else []
        if any(entry.name not in begun for entry in found):
            go_on = f"go on with `fedshare pretrain --resume {self.path}`, or " if self.config.exists() else ""
            raise UserError(f"folder={self.path}: is not empty: {go_on}name another")


class Built(NamedTuple):
    plan: Plan
    scratch: Scratch
    part: Part


def main(arguments: list[str]) -> None:
    if not any(argument.split("=")[0] == "--resume" for argument in arguments):
        return run(arguments, "pretrain", Work("pretrain", built, check, execute))
    parser = Parser(prog="fedshare pretrain", allow_abbrev=False)
    parser.add_argument("--resume", required=True, metavar="FOLDER", help="continue the training in this folder")
    add_config_dir(parser)
    add_trust(parser)
    options = parser.parse_args(arguments)
    importable(options.config_dir)
    return resume(options.resume, Trust.of(options.trust, options.config_dir))


def built(config: DictConfig) -> Built:
    with one_thread():  # as in `build.population_of`
        made = plan(config)
        dataset = examples.data(config, made.task)
        part = _part(dataset)
        _check_augment(made.augment, part)
        return Built(made, Scratch(backbone(config, dataset, made.task), device_of(config.device)), part)


def plan(config: DictConfig) -> Plan:
    augment = None if config.augment is None else make(config.augment, "augment")
    keys = ("epochs", "batch_size", "warmup_epochs", "label_smoothing", "precision", "test_every")
    task = make(config.task, "task", Task)
    given = {key: config[key] for key in keys}
    return Plan(optimizer=make(config.optimizer, "optimizer"), augment=augment, task=task, **given)


def check(config: DictConfig, seen: set[str]) -> None:
    """Check a job of a sweep, except its model. `seen` holds the data already checked, and grows."""
    made = plan(config)
    instantiate.check(config.model, "model")
    device_of(config.device)
    if config.weights is not None:
        weights.locate(config.weights)
    if (text := OmegaConf.to_yaml(OmegaConf.masked_copy(config, ["data", "augment", "task"]))) not in seen:
        _check_augment(made.augment, _part(examples.data(config, made.task)))
        seen.add(text)


def execute(config: DictConfig, path: Path, _sweep: str | None = None, made: Built | None = None) -> None:
    folder = Folder(path)
    folder.check_new()
    made = made or built(config)
    config.threads = config.threads or devices.cores()  # resolved, so that a resumed run gives the same bits
    create(folder, config)
    with on_disk(path, partial(_goes_on, folder)), folder.lock():
        _epochs(config, folder, made, None)


def resume(path: str, trusted: Trust | None = None) -> None:
    """Resume from the last intact checkpoint. `trusted`: as for `stored`."""
    folder = Folder(path)
    if not folder.config.is_file():
        raise UserError(f"{path}: not a folder of `fedshare pretrain`: it has no {folder.config.name}")
    config = stored(folder, root=Pretraining, trusted=trusted)
    check_streams(folder, "what is in it can still be weights=")
    if type(config.threads) is not int:
        raise UserError(f"{folder.config} is damaged: its threads are no number")
    with on_disk(folder.path, partial(_goes_on, folder)), folder.lock():
        start = checkpoint.latest(folder.checkpoints, warn)
        warn_of_versions(folder)
        _epochs(config, folder, built(config), start)


def _goes_on(folder: Folder) -> str:
    last = next(iter(checkpoint.rounds(folder.checkpoints)), 0)
    safe = f"safe up to epoch {last}, its last checkpoint" if last else "its config is safe, and no epoch yet"
    return f"{safe}; once it can be written, `fedshare pretrain --resume {folder.path}` goes on, to the same bits"


def _epochs(config: DictConfig, folder: Folder, made: Built, start: Checkpoint | None) -> None:
    """Train all epochs after `start`, then write the model."""
    records: list[dict[str, Any]] = start.server["records"] if start else []
    memory: State | None = start.server["memory"] if start else None
    write_atomically(folder.metrics, "".join(map(_line, records)))
    print(
        f"{config.name} · {len(made.part.train):,} training and {len(made.part.test):,} test examples · "
        f"{made.scratch.size:,} parameters · {config.precision} · {config.threads} threads · seed {config.seed}"
    )
    headline = made.plan.task.compared
    title = "acc" if headline == "accuracy" else headline[:6]
    print(_row("epoch", title, "loss", "train loss", "lr", "examples/s", "s/epoch"), flush=True)
    with terminable(), threads(config.threads):
        try:
            for epoch in pretrain(made.scratch, made.part, made.plan, config.seed, memory):
                records.append(epoch.record)
                append(folder.metrics, _line(epoch.record).encode())
                if epoch.number % config.checkpoint_every == 0 or epoch.number == config.epochs:
                    _save(folder, epoch, records)
                print(_cells(epoch.record, headline), flush=True)
        except RunHalted as error:
            kept = f"; {folder.path} keeps the epochs before" if records else ""
            raise RunHalted(f"{error}{kept}") from error
        except KeyboardInterrupt:
            last = next(iter(checkpoint.rounds(folder.checkpoints)), 0)
            print(
                f"! stopped; `fedshare pretrain --resume {folder.path}` goes on after epoch {last}, its last checkpoint"
            )
            raise
    _write_model(folder.model, made.scratch.module, config)
    final = records[-1]
    tested = f"{headline} {final[headline]:.4f}, loss {final['loss']:.4f}; " if headline in final else ""
    print(f"{tested}{folder.path}: {folder.model.name}, {folder.metrics.name}")


def _part(dataset: Dataset) -> Part:
    """The published training and test examples."""
    rows = torch.arange(len(dataset.pool)).split([dataset.train_size, len(dataset.pool) - dataset.train_size])
    return Part(*map(dataset.pool.subset, rows))


def _check_augment(augment: Augment | None, part: Part) -> None:
    """Try it on two examples, so that an unsuitable one is reported now."""
    if augment is None:
        return
    inputs, _ = part.train.batch(slice(0, 2))
    if not isinstance(inputs, torch.Tensor):
        raise UserError("augment: is for one input, and the data have several; null: none")
    try:
        found = augment(inputs, torch.Generator()).shape
    except Exception as error:  # third-party code
        raise UserError(f"augment: cannot take inputs of shape {list(inputs.shape)}: {first_line(error)}") from error
    if found != inputs.shape:
        raise UserError(f"augment: makes inputs of shape {list(found)} of those of shape {list(inputs.shape)}")


def _save(folder: Folder, epoch: Epoch, records: list[dict[str, Any]]) -> None:
    state = {"memory": epoch.memory, "records": records}
    try:
        checkpoint.save(folder.checkpoints, Checkpoint(epoch.number, "", state, {}))
    except TypeError as error:
        raise UserError(f"optimizer: its memory cannot be saved: {error}") from error


def _write_model(path: Path, model: nn.Module, config: DictConfig) -> None:
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save_tensors(tensors, {"config": json.dumps(OmegaConf.to_container(config))}))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _cells(record: dict[str, Any], headline: str) -> str:
    scores = (decimal(record.get(key)) for key in (headline, "loss", "train_loss"))
    speed, seconds = f"{record['examples_per_second']:,.0f}", decimal(record["seconds"], 2)
    return _row(str(record["epoch"]), *scores, f"{record['lr']:.2e}", speed, seconds)


def _row(*cells: str) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, (5, 6, 7, 10, 8, 10, 7), strict=True))
