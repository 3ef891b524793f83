"""A partition of a model's parameters: shared, trained locally, or frozen.

Every strategy works with every partition: `Client.params` and `Client.load` handle the shared part, `Client.fit`
trains it together with the local part, and a client's local part is kept in its memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import nn


class Role(Enum):
    SHARED = "shared"  # trained and sent; nothing else is sent
    LOCAL = "local"  # trained but not sent: each client has its own
    FROZEN = "frozen"  # not trained: the same everywhere, throughout the run


@dataclass(frozen=True)
class Parts:
    """The roles of a module's parameters and of those buffers that could be averaged, in the module's order."""

    roles: Mapping[str, Role]
    groups: Mapping[str, str] = field(default_factory=dict)  # the shared parameters' groups in the byte counts
    awake: frozenset[str] | None = None  # the modules in training mode while a client trains; None: all

    @classmethod
    def of(cls, module: nn.Module) -> "Parts":
        """Return the default partition: all parameters are shared except those the module has frozen."""
        parameters = {
            name: Role.SHARED if parameter.requires_grad else Role.FROZEN
            for name, parameter in module.named_parameters()
        }
        return cls(parameters | dict.fromkeys(moving_buffers(module), Role.SHARED))

    def named(self, role: Role, among: Iterable[str]) -> list[str]:
        return [name for name in among if self.roles[name] is role]


def moving_buffers(module: nn.Module) -> list[str]:
    """Return the buffers that training changes and that can be averaged, such as BatchNorm's means, not counters."""
    saved = module.state_dict().keys()
    return [name for name, buffer in module.named_buffers() if name in saved and buffer.is_floating_point()]
