"""A participant: its model, data and memory, and how it is trained and tested."""

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
from fedshare.training.engine import Engine, Plain
from fedshare.training.fit import Batch, Batches, Fit, Steps, check_like
from fedshare.training.measure import Measure
from fedshare.training.private.budget import Budget, PrivacyRecord
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

__all__ = ["Batch", "Client", "PrivacyRecord", "Share", "Training"]
Made = TypeVar("Made")


class Client:
    """A strategy's view of a participant. `state` is its whole memory between rounds.

    Two keys of `state` belong to this class: ``local``, the local part of the model, and ``privacy``, the number of
    private steps taken. A strategy must not change them, or the local part is lost and epsilon too small.
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
        self.engine = engine or Plain()
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
        """The names of the model's parameters, frozen ones included."""
        return self._scratch.parameter_names

    @property
    def buffers(self) -> frozenset[str]:
        """The names of the model's running statistics, which training changes without gradients."""
        return self._scratch.buffer_names

    @property
    def local(self) -> list[str]:
        """The names of the model's local part, trained here and never sent (`fedshare.training.parts`)."""
        return self._scratch.local

    @property
    def initial(self) -> Tensors:
        """The shared part of the initial model. Read only."""
        return self._scratch.initial

    @property
    def size(self) -> int:
        """The number of elements of the whole model."""
        return self._scratch.size

    @property
    def vector(self) -> Tensor:
        """The model's shared parameters as one vector, in their order: a view, to be written in place."""
        return self._scratch.vector

    @property
    def first(self) -> Tensor:
        """`vector` of the initial model. Read only."""
        return self._scratch.first

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the cached result of `make` for `key`, shared by all clients of this process; not part of `state`."""
        cache: dict[Hashable, Made] = self._scratch.cache
        if key not in cache:
            cache[key] = make()
        return cache[key]

    def params(self, names: list[str] | None = None) -> Tensors:
        """Return a copy of the model's shared part (`fedshare.training.parts`), or of the tensors `names`."""
        return self._scratch.params(names)

    def load(self, params: Tensors) -> None:
        """Reset the model to the initial one, overlaid with this client's local part and with `params`.

        Nothing of another client remains in it. It is then in evaluation mode, as it is after `fit`.
        """
        self._scratch.load(self.state.get("local", {}) | params)

    def batches(self, round: int, epochs: float | None = None) -> Iterator[Batch]:
        """Yield the batches of this round: `epochs` passes, by default the config's, each in a new random order.

        Raises UserError if training is private, because a strategy's use of the batches would not be noised.
        """
        return self._steps(round, epochs).batches()

    def steps(self, epochs: float | None = None) -> int:
        """Return the number of steps in a round: `epochs` passes, by default the config's."""
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
        """Return the model's main output for a batch's inputs."""
        return self._measure.outputs(inputs)

    def loss(self, batch: Batch) -> Tensor:
        """Return the task's loss, averaged over the batch's targets."""
        return self._measure.loss(batch)

    def losses(self, batch: Batch, vectors: Tensor) -> Tensor:
        """Return `loss` at each of `vectors` ``[n, size]`` in place of `vector`, evaluated together: ``[n]``.

        If the model's code cannot be batched, they are evaluated one after another, and `vector` is the last.
        """
        return self._measure.losses(batch, vectors)

    def loss_over(self, examples: Examples) -> float:
        """Return the mean loss of the current model over all of `examples`; 0 if none of their targets counts."""
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
        """Train the model on the client's examples; with `names`, only these parameters.

        Training makes `epochs` passes, by default the config's. Frozen parameters in `names` are not trained. `toward`
        adds a proximal term to the loss: ``pull / 2`` times the squared distance of the parameters from it. The
        `correction` is added to the gradient of each step, before clipping (SCAFFOLD's control variates). The model's
        local part is kept in ``state["local"]``, unless `keep_local` is false. Raises KeyError if a name is not a
        parameter's, or one in `toward` or `correction` is not in the model, and ValueError if a shape differs.

        Returns ``examples`` (the client's number of examples) and ``train_loss`` (averaged over steps, before each).
        With `Training.privacy`, ``train_loss`` would reveal what the noise hides; instead there is ``max_epsilon``, the
        budget spent by all steps of this client in this run so far, if it is finite.
        """
        scratch, training = self._scratch, self.training
        for tensors in (toward, correction):
            if tensors:
                check_like(scratch.shapes, tensors)
        asked = Fit(
            round=round,
            names=self._trained(names),
            epochs=epochs,
            toward=toward or {},
            pull=pull,
            correction=correction or {},
        )
        metrics = {"examples": float(len(self.train_examples))}
        if training.sampling != "poisson":
            steps: Steps = self._steps(round, epochs)
            metrics["train_loss"] = self.engine.train(scratch, training, asked, steps)
        else:
            scratch.train()  # otherwise its BatchNorms would go unnoticed
            key = self._budget.key(asked, scratch, self.train_examples)
            poisson = self._budget.steps(key, asked, scratch, self.task, training, self.train_examples)
            loss = self.engine.train(scratch, training, asked, poisson)
            if training.privacy:
                metrics |= self._budget.spend(self.state, training.privacy, key, asked, poisson)
            else:
                metrics["train_loss"] = loss
        if scratch.local and keep_local:
            self.state["local"] = scratch.params(scratch.local)
        return metrics

    def _trained(self, names: Iterable[str] | None) -> tuple[str, ...]:
        """Return those of `names`, by default of all parameters, that are not frozen, in the model's order."""
        if names is None:
            return tuple(self._scratch.trainable)
        chosen = set(names)
        if unknown := sorted(chosen - self._scratch.parameters.keys()):
            raise KeyError(f"the model has no parameter {', '.join(unknown)}")
        return tuple(name for name in self._scratch.trainable if name in chosen)

    def evaluate(self) -> Payload:
        """Test the model and return the task's sums over the test and, if any, the validation examples.

        `Task.scores` computes the metrics from them.
        """
        parts = {"sums": self.test_examples, "validation": self.validation_examples}
        return Payload({name: self.sums(part) for name, part in parts.items() if part is not None})

    def sums(self, examples: Examples) -> Tensors:
        """Return the sums of a test on `examples`."""
        return self.engine.sums(self._measure, examples)

    def scores(self) -> dict[str, float]:
        """Return the metrics on the test examples, and ``examples``: their number of targets."""
        return self.task.scores(self.sums(self.test_examples))
