"""What every method of parameter-efficient fine-tuning is: what it adds to a model, and what of the model it trains."""

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
    """Fields are the YAML's keys. Patterns are names of tensors in which * stands for anything: ``head.*``.

    What is neither under `head` nor chosen by the method is frozen: it never travels, and its modules stay in
    evaluation mode, so that dropout is off in them and running statistics stand still.
    """

    group: ClassVar[str]  # what its tensors are called in the account of bytes
    head: str | None = "head"  # the module that is trained whole beside what the method trains; null: none
    local: list[str] | tuple[str, ...] = ()  # patterns of what is trained but kept at home
    frozen: list[str] | tuple[str, ...] = ()  # patterns of what is not trained after all

    def check(self, modules: set[str]) -> None:
        """Raise UserError where the model has no module of the head's name."""
        if self.head is not None and self.head not in modules:
            raise UserError(f"peft.head={self.head}: the model has no such module; null: train none beside")

    def insert(self, model: nn.Module) -> nn.Module:
        """`model` with what the method adds. Draws from torch's own generator."""
        return model

    @abstractmethod
    def trains(self, name: str) -> bool:
        """Whether the parameter `name`, which is not under the head, is trained."""

    def awake(self, model: nn.Module, backbone: set[int]) -> frozenset[str] | None:
        """The modules in training mode while a client trains; `backbone` are the `id` of those that were there before.

        None are all modules, and then the backbone's running statistics are shared, too.
        """
        return frozenset(name for name, module in model.named_modules() if id(module) not in backbone)

    def tune(self, model: nn.Module) -> tuple[nn.Module, Parts]:
        """The model to train, and its partition. Raises UserError where the method does not fit the model.

        What the model itself has frozen stays so, and so does what is added frozen.
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
        """What a parameter is called in the account of bytes; None where it is frozen."""
        return "head" if in_head else self.group if self.trains(name) else None


def _inside(model: nn.Module, path: str | None) -> set[int]:
    """The `id` of all modules, parameters and buffers of the module `path`, whatever they are called later on."""
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
    """The transformer blocks of `model`, a sequence of modules that it calls `path`."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, nn.ModuleList | nn.Sequential) or not len(found):
        raise UserError(f"peft.blocks={path}: the model has no sequence of blocks of that name")
    return list(found)


def width(block: nn.Module) -> int:
    """The length of the vectors that a block maps, which is that of the weight of its first normalisation."""
    for parameter in block.parameters():
        if parameter.ndim == 1:
            return len(parameter)
    raise UserError("peft: the model's blocks have no normalisation, so the length of their vectors is unknown")


def linears(model: nn.Module, names: list[str] | tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers whose last name is one of `names`."""
    found = [(n, m) for n, m in model.named_modules() if n.rpartition(".")[2] in names and isinstance(m, nn.Linear)]
    if not found:
        known = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise UserError(f"peft.targets={list(names)}: the model's linear layers are called {', '.join(known)}")
    yield from found
