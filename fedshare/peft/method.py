"""The base of all methods of parameter-efficient fine-tuning: what each adds to a model, and what it trains."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from torch import nn

from fedshare.errors import UserError
from fedshare.training.parts import Parts, Role, moving_buffers


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Fields are the YAML keys. Patterns match names of tensors, * matching anything: ``head.*``.

    Parameters neither under `head` nor selected by the method are frozen: they are never sent, and their modules stay
    in evaluation mode, so that dropout is off and running statistics do not change.
    """

    group: ClassVar[str]  # its tensors' name in the byte counts
    head: str | None = "head"  # the module that is trained in full beside the method's parameters; null: none
    local: list[str] | tuple[str, ...] = ()  # patterns of tensors that are trained but not sent
    frozen: list[str] | tuple[str, ...] = ()  # patterns of tensors that are excluded from training

    def check(self, modules: set[str]) -> None:
        """Raise UserError if the model has no module named `head`."""
        if self.head is not None and self.head not in modules:
            raise UserError(f"peft.head={self.head}: the model has no such module; null: train none beside")

    def insert(self, model: nn.Module) -> nn.Module:
        """Return `model` with the method's additions. Draws from torch's own generator."""
        return model

    @abstractmethod
    def trains(self, name: str) -> bool:
        """Return whether the parameter `name`, which is not under the head, is trained."""

    def awake(self, model: nn.Module, backbone: set[int]) -> frozenset[str] | None:
        """Return the modules in training mode while a client trains; `backbone` has the `id` of the original ones.

        None means all modules; then the backbone's running statistics are shared, too.
        """
        return frozenset(name for name, module in model.named_modules() if id(module) not in backbone)

    def tune(self, model: nn.Module) -> tuple[nn.Module, Parts]:
        """Return the model to train, and its parts. Raises UserError if the method does not fit the model.

        Parameters that the model itself has frozen stay frozen, and so do those added frozen.
        """
        self.check({name for name, _ in model.named_modules()})
        head = _inside(model, self.head)
        backbone = {id(module) for module in model.modules()}
        frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
        known = {id(parameter) for parameter in model.parameters()}
        model = self.insert(model)
        frozen |= {id(p) for p in model.parameters() if id(p) not in known and not p.requires_grad}
        awake = self.awake(model, backbone)
        if awake is not None:
            awake |= {name for name, module in model.named_modules() if id(module) in head}
        groups = {}
        for name, parameter in model.named_parameters():
            if id(parameter) not in frozen and (group := self.group_of(name, id(parameter) in head)):
                groups[name] = group
        buffers = dict(model.named_buffers())
        for name in moving_buffers(model):
            if awake is None or id(buffers[name]) in head:
                groups[name] = "head" if id(buffers[name]) in head else self.group
        if self.head is not None and head and "head" not in groups.values():
            raise UserError(f"peft.head={self.head}: nothing of it is trained; null: train none beside the method's")
        roles = {
            name: Role.SHARED if name in groups else Role.FROZEN
            for name in (*dict(model.named_parameters()), *moving_buffers(model))
        }
        for role, patterns in ((Role.LOCAL, self.local), (Role.FROZEN, self.frozen)):
            for pattern in patterns:
                roles |= dict.fromkeys(_matching(pattern, groups, role), role)
        if Role.SHARED not in roles.values() and Role.LOCAL not in roles.values():
            raise UserError("peft: it leaves nothing to train")
        return model, Parts(roles, groups, awake)

    def group_of(self, name: str, in_head: bool) -> str | None:
        """Return a parameter's group in the byte counts; None if it is frozen."""
        return "head" if in_head else self.group if self.trains(name) else None


def _inside(model: nn.Module, path: str | None) -> set[int]:
    """Return the `id` of all modules, parameters and buffers of the module `path`, unaffected by later renaming."""
    try:
        module = model.get_submodule(path) if path else None
    except AttributeError:
        module = None
    if module is None:
        return set()
    return {id(part) for parts in (module.modules(), module.parameters(), module.buffers()) for part in parts}


def _matching(pattern: str, names: dict[str, str], role: Role) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        some = ", ".join(list(names)[:3])
        raise UserError(f"peft.{role.value}: {pattern} is none of the tensors that are trained, such as {some}")
    return found


def blocks(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the transformer blocks of `model`, the sequence of modules at `path`."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
        raise UserError(f"peft.blocks={path}: the model has no sequence of blocks of that name")
    return list(found)


def width(block: nn.Module) -> int:
    """Return the length of a block's vectors, taken from the weight of its first norm."""
    for parameter in block.parameters():
        if parameter.ndim == 1:
            return len(parameter)
    raise UserError("peft: the model's blocks have no normalisation, so the length of their vectors is unknown")


def linears(model: nn.Module, names: list[str] | tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers whose last name component is one of `names`."""
    found = [(n, m) for n, m in model.named_modules() if n.rpartition(".")[2] in names and isinstance(m, nn.Linear)]
    if not found:
        known = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(f"peft.targets={list(names)}: the model's linear layers are called {', '.join(known)}")
    yield from found
