"""Per-example gradients, clipped to a norm, without a loop over the examples."""

from collections.abc import Mapping
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedshare.data.dataset import Inputs, mapped
from fedshare.errors import UserError, first_line
from fedshare.tasks import Task, models
from fedshare.training.forward import autocast
from fedshare.training.scratch import as_real
from fedshare.training.settings import Training


class Clipping:
    """The sum of a batch's per-example gradients for `trained`, each clipped to L2 norm `Privacy.max_grad_norm`.

    The norm is over all of `trained` together. The gradients of `Privacy.chunk` examples are in memory at once.
    """

    def __init__(self, module: nn.Module, task: Task, trained: Mapping[str, nn.Parameter], training: Training) -> None:
        assert training.privacy is not None
        self._module, self._task, self._trained, self._training = module, task, trained, training
        self._max_norm, self._chunk = training.privacy.max_grad_norm, training.privacy.chunk
        names = {id(parameter): name for name, parameter in trained.items()}
        # Every place of a trained parameter, once: `functional_call` itself does not restore the original values if one
        # module stands in several places.
        self._places = {
            f"{owner}.{leaf}" if owner else leaf: names[id(parameter)]
            for owner, inner in module.named_modules()
            for leaf, parameter in inner._parameters.items()
            if id(parameter) in names
        }

    def add(self, inputs: Inputs, targets: Tensor) -> None:
        """Add the sum to the parameters' gradients. An example whose gradient is not finite is left out.

        Raises UserError if the model has no gradient of a single example: it changes buffers when called, or uses
        operations that `torch.func.vmap` does not support.
        """
        values = {name: parameter.detach() for name, parameter in self._trained.items()}
        count = len(targets)
        for start in range(0, count, self._chunk or count or 1):
            rows = slice(start, start + (self._chunk or count))
            self._add(self._gradients(values, mapped(itemgetter(rows), inputs), targets[rows]))

    def _gradients(self, values: Mapping[str, Tensor], inputs: Inputs, targets: Tensor) -> dict[str, Tensor]:
        """Return per-example gradients, for each tensor ``[examples, *shape]``."""

        def loss(values: Mapping[str, Tensor], x: Inputs, y: Tensor) -> Tensor:
            placed = {place: values[name] for place, name in self._places.items()}
            positional, named = models.arguments(mapped(lambda part: part.unsqueeze(0), x))
            with autocast(self._training, y.device):
                returned = functional_call(self._module, placed, positional, named, tie_weights=False)
            return self._task.alone(returned, y.unsqueeze(0)).sum()

        before = _buffers(self._module)
        try:
            with sdpa_kernel(SDPBackend.MATH):  # vmap runs the other kernels example by example
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
        rows = {name: as_real(gradient).reshape(len(gradient), -1) for name, gradient in gradients.items()}
        norms = torch.stack([torch.linalg.vector_norm(row, dim=1) for row in rows.values()]).norm(dim=0)
        finite = norms.isfinite()
        factors = torch.where(finite, (self._max_norm / norms).clamp(max=1), 0)
        for name, row in rows.items():
            row.masked_fill_(~finite[:, None], 0)  # 0 times NaN is NaN
            slope = as_real(self._trained[name].grad)  # type: ignore[arg-type]
            slope.add_((factors.to(row.dtype) @ row).view_as(slope))


def _buffers(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return each buffer's identity and version, which change with its value."""
    return {name: (id(buffer), buffer._version) for name, buffer in module.named_buffers()}
