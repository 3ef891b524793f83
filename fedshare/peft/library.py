"""LoRA and whatever else Hugging Face's `peft` has, by its own configs."""

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
    """A method of `peft`, which is put into the model in place, so that the backbone's names stay what they were.

    Fixed random projections (VeRA's) are drawn from the run's seed, unless the config has
    a seed of its own for them; they are frozen parts of the model, so that all have the same and none travels.

    Of LoRA's matrices: ``frozen: ["*lora_A*"]`` is FFA-LoRA (Sun et al. 2024, arXiv 2403.12313), whose average of
    products is the product of averages; ``local: ["*lora_B*"]`` is FedSA-LoRA (Guo et al. 2024, arXiv 2410.01463),
    which shares what clients have in common and keeps at home what they have not.
    """

    group: ClassVar[str] = "peft"
    config: PeftConfig = field()  # peft's own; its modules_to_save is left alone, for `head` does the same
    inner: str = "model"  # for methods that learn prompts: the module that is one of transformers' models

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
        except Exception as error:  # of many kinds
            raise UserError(f"peft.config: {first_line(error)}") from error
        return model

    @property
    def _wraps(self) -> bool:
        """Whether the method is for a whole model of transformers, and not for layers of any model."""
        return bool(self.config.is_prompt_learning or self.config.is_adaption_prompt)

    def _wrap(self, model: nn.Module, config: PeftConfig) -> None:
        """What prompts add to the model's output is cut off again."""
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
        prefix = "adaption_" if self.config.is_adaption_prompt else self._prefix  # its gates are called otherwise
        return any(part.startswith(prefix) for part in name.split("."))

    def group_of(self, name: str, in_head: bool) -> str | None:
        """A method that learns prompts for a classifier puts a copy in the head's place, and keeps the original."""
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
    """A copy, whose seeds of fixed projections are drawn from torch's own generator where they are the default."""
    config = copy.deepcopy(config)
    for entry in fields(config):
        if entry.name.endswith(("_prng_key", "projection_seed")) and getattr(config, entry.name) == entry.default:
            setattr(config, entry.name, int(torch.randint(2**31, (), device="cpu")))
    return config


def _inject(model: nn.Module, config: PeftConfig) -> None:
    """`peft.inject_adapter_in_model`, also for methods whose layers share a state, which it refuses.

    All that is added is part of the model's state: it is held, and compared as a run is joined.
    """
    kind: Any = config.peft_type
    if kind not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise UserError(f"peft.config: {type(config).__name__} is for models of transformers alone")
    before = {id(module) for module in model.modules()}
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[kind](model, config, adapter_name="default")
    inside = {id(module) for module in model.modules()}
    for name, module in tuner.named_children():  # FRoD's layers do not own what they share
        if name != "model" and id(module) not in inside:
            model.add_module(name, module)
    for module in model.modules():
        if id(module) not in before:
            module._non_persistent_buffers_set.clear()
