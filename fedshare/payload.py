"""What crosses the network: named groups of named tensors, and metrics. Nothing else travels."""

import math
from dataclasses import dataclass, field

from fedshare.tensors import Tensors, nbytes


@dataclass(frozen=True)
class Payload:
    tensors: dict[str, Tensors] = field(default_factory=dict)  # {"params": {...}, "critical": {...}}
    metrics: dict[str, float] = field(default_factory=dict)  # {"examples": 600, ...}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, without any framing."""
        return sum(nbytes(group.values()) for group in self.tensors.values())


def flaw(upload: Payload, expected: dict[str, Tensors], max_examples: int) -> str | None:
    """Why `upload` cannot be used; None where it can.

    It must hold exactly the groups, names, shapes and types of `expected`, only finite numbers, and a whole number of
    examples in 1..max_examples. An upload of another shape is not broadcast: it would pass unseen into the average.
    """
    if wrong := _names("groups", set(upload.tensors), set(expected)):
        return wrong
    for group, tensors in upload.tensors.items():
        if wrong := _names(group, set(tensors), set(expected[group])):
            return wrong
        for name, tensor in tensors.items():
            like = expected[group][name]
            if tensor.shape != like.shape:
                return f"{group}: {name} has shape {list(tensor.shape)}, not {list(like.shape)}"
            if tensor.dtype != like.dtype:
                return f"{group}: {name} is {tensor.dtype}, not {like.dtype}"
            if (tensor.is_floating_point() or tensor.is_complex()) and not tensor.isfinite().all():
                return f"{group}: {name} holds NaN or infinity"
    for name, value in upload.metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"metric {name} is {value}"
    examples = upload.metrics.get("examples")
    if examples is None or examples != int(examples) or not 1 <= examples <= max_examples:
        return f"claims {'no number of' if examples is None else f'{examples:g}'} examples, not 1 to {max_examples}"
    return None


def _names(what: str, found: set[str], expected: set[str]) -> str | None:
    if found == expected:
        return None
    some = [f"lacks {name}" for name in sorted(expected - found)] + [
        f"has unknown {n}" for n in sorted(found - expected)
    ]
    return f"{what}: {', '.join(some[:3])}{f' and {len(some) - 3} more' if len(some) > 3 else ''}"
