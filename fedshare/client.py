"""A participant: its model, its data, what it remembers, and how it trains and is tested."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from fedshare import batching, seeds
from fedshare.data.dataset import Examples, Inputs
from fedshare.errors import UserError
from fedshare.fit import Batch, autocast, fit, plain
from fedshare.noise import Stream
from fedshare.payload import Payload
from fedshare.poisson import Poisson
from fedshare.privacy import Privacy
from fedshare.scratch import Scratch
from fedshare.state import State, digests
from fedshare.tasks import Classification, Task, models
from fedshare.tasks.task import add
from fedshare.tensors import Tensors
from fedshare.training import Training

__all__ = ["Batch", "Client", "Ledger", "Share", "Training"]
Made = TypeVar("Made")


class Share(Protocol):
    """A client's part of the data. `validation`, a part of what it could train on, decides; `test` is reported."""

    @property
    def train(self) -> Examples: ...
    @property
    def test(self) -> Examples: ...
    @property
    def validation(self) -> Examples | None: ...


class Ledger(Protocol):
    """What private training needs where others see the uploads, on the client's own disk: nobody takes it back."""

    @property
    def secret(self) -> str:
        """Part of the key of all noise: without one, anybody who knows the seed can take the noise off."""
        ...

    def spend(self, round: int, fit: int, digest: str, steps: int) -> int:
        """Enter a fit, whose noise `digest` stands for, once; the steps of all fits so far. Durable when it returns."""
        ...


class Client:
    """What a strategy sees of a participant. `state` is all it remembers from round to round.

    Two keys of `state` are this class's own: ``local``, the local part of the model, and ``privacy``, how many private
    steps it has taken. A strategy leaves them where they are, or the local part is lost and epsilon too small.

    A `ledger` belongs to a deployment, where steps count that `state` has forgotten; a simulation has none.
    """

    def __init__(
        self,
        id: int,
        seed: int,
        scratch: Scratch,
        training: Training,
        share: Share,
        state: State,
        ledger: Ledger | None = None,
        task: Task | None = None,
    ) -> None:
        self.id = id
        self.seed = seed
        self.state = state
        self.training = training
        self.task = task or Classification()
        self._scratch = scratch
        self._share = share
        self._ledger = ledger
        self.download = Payload()  # what the server has sent for this task
        self._fits = 0  # in this round: a client is made anew for each

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
    def local(self) -> list[str]:
        """The names of what is trained here and never leaves: the local part of the model (`fedshare.parts`)."""
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
        """A copy of what the model shares (`fedshare.parts`), or of the parameters and buffers called `names`."""
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
        if self.training.private:
            raise UserError(
                "client.privacy: protects what `fit` makes of the examples, and the strategy takes them itself"
            )
        order = seeds.generator(self.seed, "batches", round, self.id)
        count = len(self.train_examples)
        pieces = self.training.pieces(count)
        for some in batching.passes(pieces, self.training.round_steps(len(pieces), epochs), count, order):
            yield self.train_examples.batch(some.to(self._scratch.device))

    def outputs(self, inputs: Inputs) -> Tensor:
        """The model's answer to a batch's inputs."""
        with autocast(self.training, self._scratch.device):
            return self.task.outputs(self.model, inputs)

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss, averaged over the batch's targets."""
        inputs, targets = batch
        return self.task.losses(self.outputs(inputs), targets).mean()

    def losses(self, batch: Batch, vectors: Tensor) -> Tensor:
        """`loss` with each of `vectors` ``[n, size]`` in the place of `vector`, evaluated together: ``[n]``.

        Where the model's code cannot be batched, they are evaluated one after the other, and `vector` is the last.
        """
        inputs, targets = batch
        positional, named = models.arguments(inputs)

        def loss(params: Tensors) -> Tensor:
            with autocast(self.training, self._scratch.device):
                returned = torch.func.functional_call(self.model, params, positional, named)
            return self.task.losses(models.select(returned, self.task.output)[0], targets).mean()

        try:
            return torch.func.vmap(loss)(self._scratch.batched(vectors))
        except RuntimeError:
            return torch.stack([(self.vector.copy_(vector), self.loss(batch))[1] for vector in vectors])

    def loss_over(self, examples: Examples) -> float:
        """The mean loss of the model as it is over all of `examples`; 0 where none of their targets counts."""
        total, weight = 0.0, 0.0
        with torch.no_grad():
            for inputs, targets in self._in_turn(examples):
                sums, weights = self.task.losses(self.outputs(inputs), targets)
                total += float(sums.sum())
                weight += float(weights.sum())
        return total / weight if weight else 0.0

    def fit(
        self,
        round: int,
        names: Iterable[str] | None = None,
        *,
        epochs: float | None = None,
        toward: Tensors | None = None,
        pull: float = 0.0,
    ) -> dict[str, float]:
        """Train the model on the client's examples, only the parameters `names` where given; keep its local part.

        It makes `epochs` passes over them, by default the config's. Frozen ones among `names` stay as they are. With
        `toward`, the loss has a proximal term more: ``pull / 2`` times the squared distance of the parameters from
        those. Raises KeyError where a name is no parameter's.

        Returns ``examples`` (how many the client has) and ``train_loss`` (averaged over the steps, before each). With
        `Training.privacy` there is no ``train_loss``, which would tell of the examples what the noise is to hide, but
        ``max_epsilon``: what all steps of this client in this run have spent by now, where that is finite.
        """
        scratch = self._scratch
        chosen = set(scratch.trainable if names is None else names)
        if unknown := sorted(chosen - scratch.parameters.keys()):
            raise KeyError(f"the model has no parameter {', '.join(unknown)}")
        trained = [name for name in scratch.trainable if name in chosen]
        metrics = {"examples": float(len(self.train_examples))}
        if self.training.sampling != "poisson":
            steps, backward = self.batches(round, epochs), plain(scratch, self.task, self.training)
            loss = fit(scratch, self.training, round, trained, steps, backward, toward or {}, pull)
        else:
            scratch.train()  # or its BatchNorms would not be seen
            key = self._key(round, trained)
            poisson = self._poisson(key, trained, epochs)
            loss = fit(scratch, self.training, round, trained, poisson.batches(), poisson.backward, toward or {}, pull)
            if self.training.privacy:
                metrics |= self._spend(self.training.privacy, poisson, round, key)
        if scratch.local:
            self.state["local"] = scratch.params(scratch.local)
        return metrics if self.training.privacy else metrics | {"train_loss": loss}

    def _key(self, round: int, names: list[str]) -> tuple[int | str, ...]:
        """What the samples and the noise of the next fit come of, beside the seed."""
        self._fits += 1
        key: tuple[int | str, ...] = (round, self.id, self._fits)
        if self._ledger:
            # Two models for one round, or other examples after a restart, would otherwise get one noise, and their
            # difference would show what it hides.
            start = self._scratch.params(list(self._scratch.shapes))
            known = digests({"start": start, "examples": self.train_examples.digest()})
            key += (self._ledger.secret, repr(known), repr(names))
        return key

    def _poisson(self, key: tuple[int | str, ...], names: list[str], epochs: float | None = None) -> Poisson:
        who, noise = (Stream(self.seed, purpose, *key) for purpose in ("poisson", "noise"))
        trained = {name: self._scratch.parameters[name] for name in names}
        return Poisson(self.model, self.task, trained, self.train_examples, self.training, epochs, who, noise)

    def _spend(self, privacy: Privacy, poisson: Poisson, round: int, key: tuple[int | str, ...]) -> dict[str, float]:
        if not privacy.noisy:
            return {}
        steps = self.state.get("privacy", {}).get("steps", 0) + poisson.steps
        self.state["privacy"] = {"steps": steps}
        if self._ledger:
            digest = hashlib.sha256(repr(key).encode()).hexdigest()
            entered = self._ledger.spend(round, self._fits, digest, poisson.steps)
            if entered < steps:
                raise UserError(f"client.privacy: of {steps} steps the client's ledger has {entered}: it is damaged")
            steps = entered
        epsilon = privacy.epsilon(steps, poisson.rate)
        return {"max_epsilon": epsilon} if math.isfinite(epsilon) else {}

    def evaluate(self) -> Payload:
        """Test the model: the task's sums over the test examples, and over those for validation where there are some.

        `Task.scores` makes the metrics of them.
        """
        parts = {"sums": self.test_examples, "validation": self.validation_examples}
        return Payload({name: self.sums(part) for name, part in parts.items() if part is not None})

    def sums(self, examples: Examples) -> Tensors:
        """What a test on `examples` adds up."""
        total = self.task.zeros()
        self.model.eval()
        with torch.no_grad():
            for inputs, targets in self._in_turn(examples):
                total = add(total, self.task.sums(self.outputs(inputs), targets))
        return total

    def scores(self) -> dict[str, float]:
        """The metrics on the test examples, and ``examples``: how many targets those are."""
        return self.task.scores(self.sums(self.test_examples))

    def _in_turn(self, examples: Examples) -> Iterator[Batch]:
        for rows in torch.arange(len(examples)).split(self.training.evaluation_batch_size):
            if len(rows):
                yield examples.batch(rows.to(self._scratch.device))
