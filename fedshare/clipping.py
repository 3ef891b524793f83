"""Each example's own gradient, cut to a norm, without a loop over the examples."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedshare.errors import UserError, first_line


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Each example's cross-entropy, ``[batch]``: the mean over its own targets, of which -100 is none.

    `logits` are ``[batch, ..., classes]``, `targets` ``[batch, ...]``. The loss of an example without a target is 0.
    """
    each = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none").reshape(len(targets), -1)
    counts = (targets != -100).reshape(len(targets), -1).sum(1)
    return each.sum(1) / counts.clamp(min=1)


class Clipping:
    """The sum of a batch's gradients with respect to `trained`, each of an L2 norm of at most `max_norm`.

    The norm is over all of `trained` together. The gradients of `chunk` examples are in memory at once; None: of all.
    """

    def __init__(
        self, module: nn.Module, trained: Mapping[str, nn.Parameter], max_norm: float, chunk: int | None = None
    ) -> None:
        self._module, self._trained, self._max_norm, self._chunk = module, trained, max_norm, chunk
        names = {id(parameter): name for name, parameter in trained.items()}
        # Every place where a trained parameter stands, once: `functional_call` itself does not put back what was there
        # where one module stands in several places.
        self._places = {
            f"{owner}.{leaf}" if owner else leaf: names[id(parameter)]
            for owner, inner in module.named_modules()
            for leaf, parameter in inner._parameters.items()
            if id(parameter) in names
        }

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add the sum to the parameters' gradients. An example whose gradient is not finite counts for nothing.

        Raises UserError where the model has no gradient of a single example: it changes buffers when it is called, or
        does what `torch.func.vmap` cannot.
        """
        values = {name: parameter.detach() for name, parameter in self._trained.items()}
        count = len(targets)
        for start in range(0, count, self._chunk or count or 1):
            rows = slice(start, start + (self._chunk or count))
            self._add(self._gradients(values, inputs[rows], targets[rows]))

    def _gradients(self, values: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Of each tensor, ``[examples, *shape]``."""

        def loss(values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            placed = {place: values[name] for place, name in self._places.items()}
            logits = functional_call(self._module, placed, (x.unsqueeze(0),), tie_weights=False)
            return losses(logits, y.unsqueeze(0)).sum()

        before = _buffers(self._module)
        try:
            with sdpa_kernel(SDPBackend.MATH):  # vmap runs the others example by example
                gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(values, inputs, targets)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"client.privacy: the model has no gradient of a single example: {first_line(error)}"
            ) from error
        now = _buffers(self._module)
        if changed := [name for name in now if now[name] != before.get(name)]:
            raise UserError(
                f"client.privacy: the model changes its buffer {changed[0]} when it is trained, so no example is alone"
            )
        return gradients

    def _add(self, gradients: dict[str, Tensor]) -> None:
        rows = {name: gradient.flatten(1) for name, gradient in gradients.items()}
        norms = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows.values()]).norm(dim=0)
        finite = norms.isfinite()
        factors = torch.where(finite, (self._max_norm / norms).clamp(max=1), 0)
        for name, row in rows.items():
            row.masked_fill_(~finite[:, None], 0)  # 0 times NaN is NaN
            total = factors @ row
            self._trained[name].grad.add_(total.view_as(self._trained[name]))  # type: ignore[union-attr]


def _buffers(module: nn.Module) -> dict[str, tuple[int, int]]:
    """What changes with each buffer's value: which tensor it is, and how often that was written."""
    return {name: (id(buffer), buffer._version) for name, buffer in module.named_buffers()}
