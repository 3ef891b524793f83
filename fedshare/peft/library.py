"""LoRA and the other methods of Hugging Face's `peft`, given by their own configs."""

import copy
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from peft import PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from fedshare.errors import UserError, first_line
from fedshare.peft.method import Method


@dataclass(frozen=True, kw_only=True)
class Library(Method):
    """A method of `peft`, injected into the model in place, so that the backbone's names are unchanged.

    Fixed random projections (VeRA's) are drawn from the run's seed, unless the config sets a seed for them. They are
    frozen parts of the model, the same on all clients, and are never sent.

    For LoRA's matrices: ``frozen: ["*lora_A*"]`` is FFA-LoRA (Sun et al. 2024, arXiv 2403.12313), in which the average
    of products is the product of averages; ``local: ["*lora_B*"]`` is FedSA-LoRA (Guo et al. 2024, arXiv 2410.01463),
    which shares what clients have in common and keeps the rest local.
    """

    group: ClassVar[str] = "peft"
    config: PeftConfig = field()  # peft's own; its modules_to_save is not used, because `head` does the same
    inner: str = "model"  # for methods that learn prompts: the module that is a transformers model

    def insert(self, model: nn.Module) -> nn.Module:
        if getattr(self.config, "modules_to_save", None):
            raise UserError("peft.config.modules_to_save: name the module in peft.head, which trains and shares it")
        if getattr(self.config, "bias", "none") != "none":
            raise UserError("peft.config.bias: must be none, for what is trained is said by peft.head and the method")
        if getattr(self.config, "generator_seed", None) is not None:
            raise UserError("peft.config.generator_seed: must be null, for what clients draw comes of the run's seed")
        config = _seeded(self.config)
        try:
            if self._wraps:
                self._wrap(model, config)
            else:
                _inject(model, config)
        except UserError:
            raise
        except Exception as error:  # of many types
            raise UserError(f"peft.config: {first_line(error)}") from error
        return model

    @property
    def _wraps(self) -> bool:
        """Whether the method needs a whole transformers model rather than layers of any model."""
        return bool(self.config.is_prompt_learning or self.config.is_adaption_prompt)

    def _wrap(self, model: nn.Module, config: PeftConfig) -> None:
        """Wrap the inner model; outputs at the added prompt positions are cut off again."""
        try:
            inner: Any = model.get_submodule(self.inner)
        except AttributeError:
            raise UserError(
                f"peft.inner={self.inner}: the model has no such module; prompts need model=transformers"
            ) from None
        if not hasattr(inner, "config"):
            raise UserError(f"peft.inner={self.inner}: is none of transformers' models, which peft's prompts need")
        owner, _, leaf = self.inner.rpartition(".")
        wrapped = get_peft_model(inner, config)
        wrapped.register_forward_hook(_cut, with_kwargs=True)
        setattr(model.get_submodule(owner), leaf, wrapped)

    @property
    def _prefix(self) -> str:
        kind: Any = self.config.peft_type
        return str(PEFT_TYPE_TO_PREFIX_MAPPING[kind])

    def trains(self, name: str) -> bool:
        if self.config.is_prompt_learning:
            return ".prompt_encoder." in f".{name}"
        prefix = "adaption_" if self.config.is_adaption_prompt else self._prefix  # its gates have another prefix
        return any(part.startswith(prefix) for part in name.split("."))

    def group_of(self, name: str, in_head: bool) -> str | None:
        """Return the group, treating the copy of a classifier's head that prompt learning makes as the head."""
        parts = name.split(".")
        if "original_module" in parts:
            return None
        return super().group_of(name, in_head or "modules_to_save" in parts)


def _cut(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    tokens = kwargs.get("input_ids", args[0] if args else None)
    if isinstance(tokens, torch.Tensor) and output.logits.ndim == 3:
        output.logits = output.logits[:, -tokens.shape[1] :]
    return output


def _seeded(config: PeftConfig) -> PeftConfig:
    """Return a copy in which default seeds of fixed projections are replaced by draws from torch's generator."""
    config = copy.deepcopy(config)
    for entry in fields(config):
        if entry.name.endswith(("_prng_key", "projection_seed")) and getattr(config, entry.name) == entry.default:
            setattr(config, entry.name, int(torch.randint(2**31, (), device="cpu")))
    return config


def _inject(model: nn.Module, config: PeftConfig) -> None:
    """Like `peft.inject_adapter_in_model`, but also for methods whose layers share a state, which it rejects.

    Everything added is part of the model's state: it is stored in checkpoints, and compared when joining a run.
    """
    kind: Any = config.peft_type
    if kind not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise UserError(f"peft.config: {type(config).__name__} is for models of transformers alone")
    before = {id(module) for module in model.modules()}
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[kind](model, config, adapter_name="default")
    inside = {id(module) for module in model.modules()}
    for name, module in tuner.named_children():  # FRoD's layers do not own their shared modules
        if name != "model" and id(module) not in inside:
            model.add_module(name, module)
    for module in model.modules():
        if id(module) not in before:
            module._non_persistent_buffers_set.clear()
