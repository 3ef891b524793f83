"""A partition of a model's parameters: what is shared, what is trained at home, what stays as it was.

Any strategy stands on any partition: `Client.params` and `Client.load` speak of the shared part, `Client.fit` trains it
together with the local part, and a client's local part is kept in its memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import nn


class Role(Enum):
    SHARED = "shared"  # trained, and all that travels
    LOCAL = "local"  # trained and kept at home: each client has its own
    FROZEN = "frozen"  # neither: the same everywhere, from before the first round to after the last


@dataclass(frozen=True)
class Parts:
    """The roles of a module's parameters and of those of its buffers that could travel, in the module's order."""

    roles: Mapping[str, Role]
    groups: Mapping[str, str] = field(default_factory=dict)  # what the shared ones are called in the account of bytes
    awake: frozenset[str] | None = None  # the modules in training mode while a client trains; None: all

    @classmethod
    def of(cls, module: nn.Module) -> "Parts":
        """All is shared but what the module itself has frozen."""
        parameters = {
            name: Role.SHARED if parameter.requires_grad else Role.FROZEN
            for name, parameter in module.named_parameters()
        }
        return cls(parameters | dict.fromkeys(moving_buffers(module), Role.SHARED))

    def named(self, role: Role, among: Iterable[str]) -> list[str]:
        return [name for name in among if self.roles[name] is role]


def moving_buffers(module: nn.Module) -> list[str]:
    """The buffers that training moves and that can be averaged, such as BatchNorm's means; counters are not."""
    saved = module.state_dict().keys()
    return [name for name, buffer in module.named_buffers() if name in saved and buffer.is_floating_point()]
