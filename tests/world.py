"""A small world for tests: a few clients, a small model. In a module, so that worker processes can import it."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fedshare import seeds
from fedshare.client import Training
from fedshare.data.dataset import Dataset, Examples
from fedshare.experiments.config import examples, model
from fedshare.experiments.config.instantiate import make
from fedshare.network import Exchange, Heard, Memories, Purpose, Quotas
from fedshare.payload import Payload
from fedshare.simulation import Part, Population, Simulation
from fedshare.state import State
from fedshare.strategy import Strategy
from fedshare.tasks import Task
from fedshare.tensors import Tensors
from fedshare.training.scratch import Scratch

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "experiments" / "conf" / "strategy"
STRATEGIES = sorted(
    path.stem for path in (ROOT / "strategies").glob("*.py") if (CONFIGS / f"{path.stem}.yaml").exists()
)
CLIENTS, CLASSES, FEATURES = 5, 3, 6
PATIENCE = 600.0  # seconds that a test waits for anything, on however busy a machine; how long it took is not asserted


def strategy_config(name: str) -> DictConfig:
    """One file of the group, without the options of other groups that it asks for."""
    return _strategy_config(name).copy()


@cache
def _strategy_config(name: str) -> DictConfig:
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    config.pop("defaults", None)
    return config


def halves() -> list[str]:
    """Of the strategies with the same client's half one: wherever clients run they are the same."""
    known = {}
    for name in STRATEGIES:
        kind = type(strategy(name))
        known.setdefault((kind.apply, kind.train, kind.evaluate, kind.form), name)
    return list(known.values())


def shapes() -> list[str]:
    """Of the strategies whose uploads have the same form, and none, one or several groups, one: they are sent alike."""
    initial, known = Scratch(Net()).initial, dict[tuple[type, int], str]()
    for name in STRATEGIES:
        one = strategy(name)
        known.setdefault((type(one.form), min(2, len(one.expects(one.init(initial, CLIENTS), 0)))), name)
    return list(known.values())


@cache  # it keeps nothing, as `test_nothing_on_self_changes` says
def strategy(name: str) -> Strategy:
    """The strategy of one file in strategies/, with the values of its YAML."""
    made = make(strategy_config(name), "strategy")
    assert isinstance(made, Strategy)
    return made


def dataset(config: DictConfig) -> Dataset:
    """The data set of a resolved config."""
    return examples.data(config, make(config.task, "task", Task))


def backbone(config: DictConfig) -> nn.Module:
    """The model of a resolved config, before anything is added to it."""
    return model.backbone(config, dataset(config), make(config.task, "task", Task))


def sgd(parameters: object, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.5)  # type: ignore[arg-type]


def shares(clients: int = CLIENTS, seed: int = 0) -> list[Part]:
    """Clients of different sizes whose features lean towards their labels."""
    parts = []
    for client in range(clients):
        random = seeds.generator(seed, "world", client)
        count = 12 + 4 * client
        y = torch.randint(CLASSES, (count,), generator=random)
        x = torch.randn(count, FEATURES, generator=random) + torch.eye(CLASSES, FEATURES)[y] * 3
        parts.append(Part(Examples(x[:-4], y[:-4]), Examples(x[-4:], y[-4:])))
    return parts


def tested(accuracy: float, loss: float, examples: int) -> Tensors:
    """The sums of a client's test that give these."""
    counts = {"examples": examples, "correct": round(accuracy * examples)}
    floats = {"loss": loss * examples, "weight": float(examples)}
    return {name: torch.tensor(value) for name, value in counts.items()} | {
        name: torch.tensor(value, dtype=torch.float64) for name, value in floats.items()
    }


class Net(nn.Module):
    """What matters to a round: weights, biases, dropout, a running statistic, a counter, a mean that is assigned anew
    in each step, and a memory that is not to be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(8, CLASSES)
        self.register_buffer("seen", torch.zeros(FEATURES))
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.01 * self.steps
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
            self.steps += 1
        hidden: Tensor = self.last(self.dropout(torch.relu(self.norm(self.first(x)))))
        return hidden


def build(name: str, seed: int = 0, training: Training | None = None, parts: list[Part] | None = None) -> Population:
    with seeds.scope(seed, "model"):
        module = Net()
    training = training or Training(optimizer=sgd, epochs=2, batch_size=4)
    return Population(strategy(name), Scratch(module), training, parts or shares(), seed)


def begin(population: Population) -> State:
    """The server's memory before round 1."""
    return population.strategy.init(population.scratch.initial, population.clients)


class Altered:
    """A network between the server and a simulation, whose `change` may rewrite what each client uploads."""

    def __init__(self, inner: Simulation, change: dict[int, Callable[[Payload], Payload]]) -> None:
        self.inner, self.change = inner, change

    def client_ids(self) -> list[int]:
        return self.inner.client_ids()

    @property
    def memories(self) -> Memories:
        return self.inner.memories

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        exchange = self.inner.exchange(purpose, round, downloads, quotas, heard)
        return replace(exchange, answers=self.altered(purpose, round, downloads, dict(exchange.answers)))

    def altered(
        self, purpose: Purpose, round: int, downloads: dict[int, Payload], answers: dict[int, Payload]
    ) -> dict[int, Payload]:
        """What the server gets of the clients' answers."""
        if purpose is not Purpose.TRAIN:
            return answers
        return answers | {
            client: self.change[client](answers[client]) for client in self.change.keys() & answers.keys()
        }


class Reversed(Altered):
    """Clients visited, and answers given, from the last to the first."""

    def exchange(
        self,
        purpose: Purpose,
        round: int,
        downloads: dict[int, Payload],
        quotas: Quotas | None = None,
        heard: Heard | None = None,
    ) -> Exchange:
        self.inner._sizes = list(self.client_ids())[::-1]  # the largest first: client 0
        exchange = self.inner.exchange(purpose, round, dict(reversed(downloads.items())), quotas, heard)
        return replace(exchange, answers=dict(reversed(exchange.answers.items())))


def fenced(readme: str, language: str) -> list[str]:
    """The code blocks of `language` in a Markdown text."""
    return re.findall(rf"```{language}\n(.*?)```", readme, re.S)
