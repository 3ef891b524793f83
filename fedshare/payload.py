"""Everything that is sent: named groups of named tensors, and metrics."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedshare.tensors import Tensors, all_finite, is_finite

UNKNOWN = 10**12  # maximum number of test examples of a client that has not declared it


@dataclass(frozen=True)
class Payload:
    tensors: dict[str, Tensors] = field(default_factory=dict)  # {"params": {...}, "critical": {...}}
    metrics: dict[str, float] = field(default_factory=dict)  # {"examples": 600, ...}
    weight: float | None = None  # the receiver's mixing weight for it, among peers; never sent

    @property
    def nbytes(self) -> int:
        """The tensors' size in bytes, without framing."""
        return sum(size for *_, size in self.sizes())

    def sizes(self) -> Iterator[tuple[str, str, int]]:
        """Yield group, name and bytes of each tensor; an untrusted upload's other values are skipped."""
        for group, tensors in self.tensors.items():
            for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
                if isinstance(tensor, Tensor):
                    yield group, name, tensor.nbytes


@dataclass(frozen=True)
class Quota:
    """The expected size of an answer, which limits how much of an untrusted answer is accepted."""

    nbytes: int = 0  # of tensors
    tensors: int = 0
    longest: int = 0  # characters of a name

    @classmethod
    def of(cls, expected: dict[str, Tensors]) -> "Quota":
        sizes = list(Payload(expected).sizes())
        longest = max((max(len(group), len(name)) for group, name, _ in sizes), default=0)
        return cls(sum(size for *_, size in sizes), len(sizes), longest)


def same_tensors(a: Payload, b: Payload) -> bool:
    """Return whether two payloads hold the same tensor objects, as when one global model goes to many clients."""
    return a.tensors.keys() == b.tensors.keys() and all(
        group.keys() == b.tensors[name].keys() and all(group[key] is b.tensors[name][key] for key in group)
        for name, group in a.tensors.items()
    )


def flaw(upload: Payload, expected: dict[str, Tensors], max_examples: int, finite: bool = True) -> str | None:
    """Return why an untrusted `upload` is invalid; None if it is valid.

    It must hold exactly the groups, names, shapes and types of `expected`, only finite numbers, and an integer number
    of examples in 1..max_examples. Other shapes are not broadcast, which would distort the average unnoticed. Without
    `finite`, the tensors' numbers are not checked.
    """
    if upload.tensors.keys() != expected.keys():
        return _names("groups", upload.tensors.keys(), expected.keys())
    for group, tensors in upload.tensors.items():
        if not isinstance(tensors, dict):
            return f"{group} is a {type(tensors).__name__}, not named tensors"
        wanted = expected[group]
        if tensors.keys() != wanted.keys():
            return _names(group, tensors.keys(), wanted.keys())
        for name, tensor in tensors.items():
            if reason := _unlike(tensor, wanted[name], finite):
                return f"{group}: {name} {reason}"
    for name, value in upload.metrics.items():
        if not is_finite(value):
            return f"metric {name} is {str(value)[:40]}"
    return _count(upload.metrics, 1, max_examples)


def evaluation_flaw(
    answer: Payload, zeros: Tensors, max_examples: int = UNKNOWN, max_validation: int | None = None
) -> str | None:
    """Return why the results of a client's own test are invalid; None if they are valid.

    They must have the names, shapes and types of `zeros`, at most `max_examples` examples (targets that count), and
    counts from 0 to that number; a loss may be NaN, which is a valid result. The optional group ``validation`` is
    checked like ``sums``, or against `max_validation`.
    """
    if wrong := _names("groups", answer.tensors.keys() - {"validation"}, {"sums"}):
        return wrong
    for group, sums in answer.tensors.items():
        if not isinstance(sums, dict):
            return f"{group} is a {type(sums).__name__}, not named tensors"
        if wrong := _names(group, sums.keys(), zeros.keys()):
            return wrong
        for name, tensor in sums.items():
            if reason := _unlike(tensor, zeros[name], finite=False):
                return f"{group}: {name} {reason}"
        most = max_examples if group == "sums" or max_validation is None else max_validation
        if not 0 <= (examples := int(sums["examples"])) <= most:
            return f"{'' if group == 'sums' else f'{group}: '}claims {examples} examples, not 0 to {most}"
        for name, tensor in sums.items():
            if not tensor.is_floating_point() and not (
                tensor.min().item() >= 0 if tensor.ndim else 0 <= tensor.item() <= examples
            ):
                return f"{group}: {name} is {str(tensor.tolist())[:40]}, not 0 to {examples}"
    return None


def _unlike(tensor: object, like: Tensor, finite: bool = True) -> str | None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        return f"is a {type(tensor).__name__}, not a dense tensor"
    if tensor.shape != like.shape:
        return f"has shape {list(tensor.shape)}, not {list(like.shape)}"
    if tensor.dtype != like.dtype:
        return f"is {tensor.dtype}, not {like.dtype}"
    return None if not finite or all_finite([tensor]) else "holds NaN or infinity"


def _count(metrics: dict[str, float], least: int, most: int) -> str | None:
    examples = metrics.get("examples")
    if examples is None:
        return f"claims no number of examples, not {least} to {most}"
    if not is_finite(examples) or examples != int(examples) or not least <= examples <= most:
        return f"claims {str(examples)[:40].removesuffix('.0')} examples, not {least} to {most}"
    return None


def _names(what: str, found: AbstractSet[str], expected: AbstractSet[str]) -> str | None:
    if found == expected:
        return None
    some = [f"lacks {name}" for name in sorted(expected - found)] + [
        f"has unknown {n}" for n in sorted(found - expected)
    ]
    return f"{what}: {', '.join(some[:3])}{f' and {len(some) - 3} more' if len(some) > 3 else ''}"
