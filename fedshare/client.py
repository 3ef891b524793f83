"""A participant: its model, its data, what it remembers, and how it trains and is tested."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedshare import seeds
from fedshare.data.dataset import Examples, Inputs, Share
from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.state import State
from fedshare.tasks import Classification, Task
from fedshare.tensors import Tensors
from fedshare.training import batching
from fedshare.training.fit import Batch, Batches, Engine, Fit, Plain, Steps, check_like
from fedshare.training.measure import Measure
from fedshare.training.private.budget import Budget, PrivacyRecord
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

__all__ = ["Batch", "Client", "PrivacyRecord", "Share", "Training"]
Made = TypeVar("Made")


class Client:
    """What a strategy sees of a participant. `state` is all it remembers from round to round.

    Two keys of `state` are this class's own: ``local``, the local part of the model, and ``privacy``, how many private
    steps it has taken. A strategy leaves them where they are, or the local part is lost and epsilon too small.
    """

    def __init__(
        self,
        id: int,
        seed: int,
        scratch: Scratch,
        training: Training,
        share: Share,
        state: State,
        record: PrivacyRecord | None = None,
        task: Task | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.id = id
        self.seed = seed
        self.state = state
        self.training = training
        self.task = task or Classification()
        self._scratch = scratch
        self._measure = Measure(scratch, training, self.task)
        self._share = share
        self._engine = engine or Plain()
        self._budget = Budget(id, seed, record)

    @cached_property
    def train_examples(self) -> Examples:
        return self._share.train.to(self._scratch.device)

    @cached_property
    def test_examples(self) -> Examples:
        return self._share.test.to(self._scratch.device)

    @cached_property
    def validation_examples(self) -> Examples | None:
        part = self._share.validation
        return None if part is None else part.to(self._scratch.device)

    @property
    def model(self) -> nn.Module:
        return self._scratch.module

    @property
    def device(self) -> torch.device:
        return self._scratch.device

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the model's parameters, frozen ones too."""
        return self._scratch.parameter_names

    @property
    def buffers(self) -> frozenset[str]:
        """The names of its running statistics, which training changes and no gradient does."""
        return self._scratch.buffer_names

    @property
    def local(self) -> list[str]:
        """The names of what is trained here and never sent: the model's local part (`fedshare.training.parts`)."""
        return self._scratch.local

    @property
    def initial(self) -> Tensors:
        """What is shared of the model that everyone starts from. Read only."""
        return self._scratch.initial

    @property
    def size(self) -> int:
        """How many numbers the whole model has."""
        return self._scratch.size

    @property
    def vector(self) -> Tensor:
        """What the model shares of its parameters, as one vector in their order: a view, to be written in place."""
        return self._scratch.vector

    @property
    def first(self) -> Tensor:
        """`vector` of the model that everyone starts with. Read only."""
        return self._scratch.first

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gave for `key` when first asked: a cache for all clients of this process, and no memory."""
        cache: dict[Hashable, Made] = self._scratch.cache
        if key not in cache:
            cache[key] = make()
        return cache[key]

    def params(self, names: list[str] | None = None) -> Tensors:
        """A copy of what the model shares (`fedshare.training.parts`), or of the parameters and buffers `names`."""
        return self._scratch.params(names)

    def load(self, params: Tensors) -> None:
        """Make the model the initial one, overlaid with this client's local part and with `params`.

        Nothing of another client remains in it. It is then in evaluation mode, as it is after `fit`.
        """
        self._scratch.load(self.state.get("local", {}) | params)

    def batches(self, round: int, epochs: float | None = None) -> Iterator[Batch]:
        """The batches of this round: `epochs` passes, by default the config's, each in an order of its own.

        Raises UserError where training is private, for what a strategy makes of them has no noise.
        """
        return self._steps(round, epochs).batches()

    def steps(self, epochs: float | None = None) -> int:
        """How many steps a round's training has: `epochs` passes, by default the config's."""
        return self.training.round_steps(self.training.pass_steps(len(self.train_examples)), epochs)

    def _steps(self, round: int, epochs: float | None) -> Batches:
        if self.training.private:
            raise UserError(
                "client.privacy: protects what `fit` makes of the examples, and the strategy takes them itself"
            )
        count = len(self.train_examples)
        pieces = self.training.pieces(count)
        order = seeds.generator(self.seed, "batches", round, self.id)
        rows = batching.passes(pieces, self.training.round_steps(len(pieces), epochs), count, order)
        return Batches(self._scratch, self.task, self.training, self.train_examples, rows)

    def outputs(self, inputs: Inputs) -> Tensor:
        """The model's answer to a batch's inputs."""
        return self._measure.outputs(inputs)

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss, averaged over the batch's targets."""
        return self._measure.loss(batch)

    def losses(self, batch: Batch, vectors: Tensor) -> Tensor:
        """`loss` with each of `vectors` ``[n, size]`` in the place of `vector`, evaluated together: ``[n]``.

        Where the model's code cannot be batched, they are evaluated one after the other, and `vector` is the last.
        """
        return self._measure.losses(batch, vectors)

    def loss_over(self, examples: Examples) -> float:
        """The mean loss of the model as it is over all of `examples`; 0 where none of their targets counts."""
        return self._measure.loss_over(examples)

    def fit(
        self,
        round: int,
        names: Iterable[str] | None = None,
        *,
        epochs: float | None = None,
        toward: Tensors | None = None,
        pull: float = 0.0,
        correction: Tensors | None = None,
        keep_local: bool = True,
    ) -> dict[str, float]:
        """Train the model on the client's examples, only the parameters `names` where given.

        It makes `epochs` passes over them, by default the config's. Frozen ones among `names` stay as they are. With
        `toward`, the loss has a proximal term more: ``pull / 2`` times the squared distance of the parameters from
        those. `correction` is added to the gradient of each step, before clipping (SCAFFOLD's control variates). The
        model's local part is kept in ``state["local"]``, unless `keep_local` is false. Raises KeyError where a name is
        no parameter's, or in `toward` or `correction` none of the model's, and ValueError where a shape is another.

        Returns ``examples`` (how many the client has) and ``train_loss`` (averaged over the steps, before each). With
        `Training.privacy` there is no ``train_loss``, which would tell of the examples what the noise is to hide, but
        ``max_epsilon``: what all steps of this client in this run have spent by now, where that is finite.
        """
        scratch, training = self._scratch, self.training
        chosen = set(scratch.trainable if names is None else names)
        if unknown := sorted(chosen - scratch.parameters.keys()):
            raise KeyError(f"the model has no parameter {', '.join(unknown)}")
        for tensors in (toward or {}, correction or {}):
            check_like(scratch.shapes, tensors)
        trained = tuple(name for name in scratch.trainable if name in chosen)
        asked = Fit(
            round=round,
            names=trained,
            epochs=epochs,
            toward=toward or {},
            pull=pull,
            correction=correction or {},
        )
        metrics = {"examples": float(len(self.train_examples))}
        if training.sampling != "poisson":
            steps: Steps = self._steps(round, epochs)
            metrics["train_loss"] = self._engine.run(scratch, training, asked, steps)
        else:
            scratch.train()  # or its BatchNorms would not be seen
            key = self._budget.key(asked, scratch, self.train_examples)
            poisson = self._budget.steps(key, asked, scratch, self.task, training, self.train_examples)
            loss = self._engine.run(scratch, training, asked, poisson)
            if training.privacy:
                metrics |= self._budget.spend(self.state, training.privacy, key, asked, poisson)
            else:
                metrics["train_loss"] = loss
        if scratch.local and keep_local:
            self.state["local"] = scratch.params(scratch.local)
        return metrics

    def evaluate(self) -> Payload:
        """Test the model: the task's sums over the test examples, and over those for validation where there are some.

        `Task.scores` makes the metrics of them.
        """
        parts = {"sums": self.test_examples, "validation": self.validation_examples}
        return Payload({name: self.sums(part) for name, part in parts.items() if part is not None})

    def sums(self, examples: Examples) -> Tensors:
        """What a test on `examples` adds up."""
        return self._measure.sums(examples)

    def scores(self) -> dict[str, float]:
        """The metrics on the test examples, and ``examples``: how many targets those are."""
        return self.task.scores(self.sums(self.test_examples))
