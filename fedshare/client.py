"""A participant: its model, its data, what it remembers, and the only training loop."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedshare import seeds
from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.metrics import perplexity
from fedshare.noise import Stream
from fedshare.payload import Payload
from fedshare.poisson import Poisson
from fedshare.privacy import Privacy
from fedshare.scratch import Scratch
from fedshare.state import State, digests
from fedshare.tensors import Tensors
from fedshare.training import Training

__all__ = ["Client", "Ledger", "Share", "Training", "check_private"]
Batch = tuple[Tensor, Tensor]
Made = TypeVar("Made")


def check_private(scratch: Scratch, training: Training, examples: Examples) -> None:
    """Try a step on the first of `examples` where steps are on Poisson samples, and leave the scratch as it began.

    Raises UserError where the model has no gradient of a single example.
    """
    if training.sampling != "poisson":
        return
    one = examples.subset(torch.arange(1)).to(scratch.device)
    trained = {name: scratch.parameters[name] for name in scratch.trainable}
    privacy = replace(training.privacy, noise_multiplier=0.0) if training.privacy else None
    try:
        with seeds.scope("check"):  # dropout
            scratch.train()
            step = Poisson(scratch.module, trained, one, 1, None, privacy, Stream(), Stream())
            step.backward(one.batch(slice(None)))
    finally:
        scratch.load({})


class Share(Protocol):
    """A client's part of the data."""

    @property
    def train(self) -> Examples: ...
    @property
    def test(self) -> Examples: ...


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
    ) -> None:
        self.id = id
        self.seed = seed
        self.state = state
        self.training = training
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

    @property
    def model(self) -> nn.Module:
        return self._scratch.module

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
        return self._scratch.flat.numel()

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

    def batches(self, round: int, epochs: int | None = None) -> Iterator[Batch]:
        """The batches of this round: `epochs` passes, by default the config's, each in an order of its own.

        Raises UserError where training is private, for what a strategy makes of them has no noise.
        """
        if self.training.private:
            raise UserError(
                "client.privacy: protects what `fit` makes of the examples, and the strategy takes them itself"
            )
        order = seeds.generator(self.seed, "batches", round, self.id)
        count = len(self.train_examples)
        for _ in range(self.training.epochs if epochs is None else epochs):
            rows = torch.randperm(count, generator=order).to(self._scratch.device)
            for some in rows.split(self.training.batch_size or count):
                yield self.train_examples.batch(some)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy, averaged over the batch's targets; logits are ``[..., classes]``."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())

    def losses(self, batch: Batch, vectors: Tensor) -> Tensor:
        """`loss` with each of `vectors` ``[n, size]`` in the place of `vector`, evaluated together: ``[n]``.

        Where the model's code cannot be batched, they are evaluated one after the other, and `vector` is the last.
        """
        inputs, targets = batch

        def loss(params: Tensors) -> Tensor:
            logits = torch.func.functional_call(self.model, params, (inputs,))
            return F.cross_entropy(logits.flatten(0, -2), targets.flatten())

        try:
            return torch.func.vmap(loss)(self._scratch.batched(vectors))
        except RuntimeError:
            return torch.stack([(self.vector.copy_(vector), self.loss(batch))[1] for vector in vectors])

    def fit(
        self,
        round: int,
        names: Iterable[str] | None = None,
        *,
        epochs: int | None = None,
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
        names = [name for name in scratch.trainable if name in chosen]
        for name in scratch.trainable:
            scratch.parameters[name].requires_grad_(name in chosen)
        vectors = scratch.slices(names) if self.training.flat else [scratch.parameters[name] for name in names]
        optimizer = self.training.optimizer(vectors)
        for group in optimizer.param_groups:
            group["lr"] *= self.training.lr_decay ** max(round - 1, 0)  # round 0 is the test before round 1
        total, count = torch.zeros((), device=scratch.device), 0
        scratch.train()
        key = self._key(round, names) if self.training.sampling == "poisson" else ()
        poisson = self._poisson(key, names, epochs) if key else None
        backward = poisson.backward if poisson else self._backward
        anchors = {name: toward[name].to(scratch.device) for name in names if name in toward} if toward else {}
        for batch in poisson.batches() if poisson else self.batches(round, epochs):
            for vector in vectors:
                vector.grad.zero_()  # type: ignore[union-attr]
            loss = backward(batch)
            for name, anchor in anchors.items():
                parameter = scratch.parameters[name]
                parameter.grad.add_(parameter.detach() - anchor, alpha=pull)  # type: ignore[union-attr]
            optimizer.step()
            total += loss * len(batch[1])
            count += len(batch[1])
        self.model.eval()
        if scratch.local:
            self.state["local"] = scratch.params(scratch.local)
        metrics = {"examples": float(len(self.train_examples))}
        if poisson and self.training.privacy:
            return metrics | self._spend(self.training.privacy, poisson, round, key)
        return metrics | {"train_loss": float(total) / max(count, 1)}

    def _backward(self, batch: Batch) -> Tensor:
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def _key(self, round: int, names: list[str]) -> tuple[int | str, ...]:
        """What the samples and the noise of the next fit come of, beside the seed."""
        self._fits += 1
        key: tuple[int | str, ...] = (round, self.id, self._fits)
        if self._ledger:
            # Two models for one round, or other examples after a restart, would otherwise get one noise, and their
            # difference would show what it hides.
            start = self._scratch.params(list(self._scratch.shapes))
            examples = {"x": self.train_examples.x, "y": self.train_examples.y}
            key += (self._ledger.secret, repr(digests({"start": start, **examples})), repr(names))
        return key

    def _poisson(self, key: tuple[int | str, ...], names: list[str], epochs: int | None = None) -> Poisson:
        training = self.training
        who, noise = (Stream(self.seed, purpose, *key) for purpose in ("poisson", "noise"))
        trained = {name: self._scratch.parameters[name] for name in names}
        size = (training.epochs if epochs is None else epochs, training.batch_size)
        return Poisson(self.model, trained, self.train_examples, *size, training.privacy, who, noise)

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

    def evaluate(self) -> dict[str, float]:
        """``accuracy`` and ``loss`` over the client's test targets and, as ``examples``, how many those are.

        Of a language model, which has a target for each position, also the ``perplexity``.
        """
        loss, correct, count = 0.0, 0, 0
        self.model.eval()
        with torch.no_grad():
            for rows in torch.arange(len(self.test_examples)).split(self.training.evaluation_batch_size):
                inputs, targets = self.test_examples.batch(rows)
                logits, targets = self.model(inputs).flatten(0, -2), targets.flatten()
                loss += float(F.cross_entropy(logits, targets, reduction="sum"))
                correct += int((logits.argmax(-1) == targets).sum())
                count += int((targets != -100).sum())
        if count == 0:
            return {"examples": 0.0}
        language = {"perplexity": perplexity(loss / count)} if self.test_examples.y.ndim > 1 else {}
        return {"accuracy": correct / count, "loss": loss / count, "examples": float(count)} | language
