"""One client's private training: the source of its samples and noise, and its spent privacy budget."""

import hashlib
import math
from typing import Protocol

from fedshare.data.dataset import Examples
from fedshare.errors import UserError
from fedshare.state import State, digests
from fedshare.tasks import Task
from fedshare.training.fit import Fit
from fedshare.training.private.noise import Stream
from fedshare.training.private.poisson import Poisson
from fedshare.training.private.privacy import Privacy
from fedshare.training.scratch import Scratch
from fedshare.training.settings import Training

Key = tuple[int | str, ...]


class PrivacyRecord(Protocol):
    """A record on the client's own disk, needed if others see the uploads: it is never rolled back."""

    @property
    def secret(self) -> str:
        """A secret part of the noise key: without it, anyone who knows the seed can remove the noise."""
        ...

    def spend(self, round: int, fit: int, digest: str, steps: int) -> int:
        """Record a fit once, by the `digest` of its noise key, and return the steps of all fits. Durable on return."""
        ...


class Budget:
    """The privacy budget of one client in one round.

    A deployment has a `record`, which also counts steps that the client's state no longer knows; a simulation has none.
    """

    def __init__(self, id: int, seed: int, record: PrivacyRecord | None) -> None:
        self._id, self._seed, self._record = id, seed, record
        self._fits = 0  # in this round: there is a new client object for each

    def key(self, fit: Fit, scratch: Scratch, examples: Examples) -> Key:
        """Return the key, beside the seed, of the samples and noise of the next fit."""
        self._fits += 1
        key: Key = (fit.round, self._id, self._fits)
        if self._record:
            # Otherwise two models for one round, or other examples after a restart, would get the same noise, and their
            # difference would reveal what it hides.
            start = scratch.params(list(scratch.shapes))
            known = digests({"start": start, "examples": examples.digest()})
            key += (self._record.secret, repr(known), repr(list(fit.names)))
        return key

    def steps(
        self, key: Key, fit: Fit, scratch: Scratch, task: Task, training: Training, examples: Examples
    ) -> Poisson:
        who, noise = (Stream(self._seed, purpose, *key) for purpose in ("poisson", "noise"))
        trained = {name: scratch.parameters[name] for name in fit.names}
        return Poisson(scratch.module, task, trained, examples, training, fit.epochs, who, noise)

    def spend(self, state: State, privacy: Privacy, key: Key, fit: Fit, poisson: Poisson) -> dict[str, float]:
        """Return ``max_epsilon``, spent by all steps of this client in this run so far, if it is finite.

        The client's `state` counts them in ``privacy``.
        """
        if not privacy.noisy:
            return {}
        steps = state.get("privacy", {}).get("steps", 0) + poisson.steps
        state["privacy"] = {"steps": steps}
        if self._record:
            digest = hashlib.sha256(repr(key).encode()).hexdigest()
            entered = self._record.spend(fit.round, self._fits, digest, poisson.steps)
            if entered < steps:
                raise UserError(f"client.privacy: of {steps} steps the client's record has {entered}: it is damaged")
            steps = entered
        epsilon = privacy.epsilon(steps, poisson.rate)
        return {"max_epsilon": epsilon} if math.isfinite(epsilon) else {}
