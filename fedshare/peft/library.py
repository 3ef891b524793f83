"""LoRA and whatever else Hugging Face's `peft` has, by its own configs."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftConfig, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import nn

from fedshare.errors import UserError, first_line
from fedshare.peft.method import Method


@dataclass(frozen=True, kw_only=True)
class Library(Method):
    """A method of `peft`, which is put into the model in place, so that the backbone's names stay what they were.

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
        try:
            if not self.config.is_prompt_learning:
                inject_adapter_in_model(self.config, model)
            else:
                self._wrap(model)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"peft.config: {first_line(error)}") from error
        return model

    def _wrap(self, model: nn.Module) -> None:
        """Prompts concern a whole model of transformers; what they add to its output is cut off again."""
        try:
            inner: Any = model.get_submodule(self.inner)
        except AttributeError:
            raise UserError(
                f"peft.inner={self.inner}: the model has no such module; prompts need model=transformers"
            ) from None
        if not hasattr(inner, "config"):
            raise UserError(f"peft.inner={self.inner}: is none of transformers' models, which peft's prompts need")
        owner, _, leaf = self.inner.rpartition(".")
        wrapped = get_peft_model(inner, self.config)
        wrapped.register_forward_hook(_cut, with_kwargs=True)
        setattr(model.get_submodule(owner), leaf, wrapped)

    @property
    def _prefix(self) -> str:
        kind: Any = self.config.peft_type
        return str(PEFT_TYPE_TO_PREFIX_MAPPING[kind])

    def trains(self, name: str) -> bool:
        if self.config.is_prompt_learning:
            return ".prompt_encoder." in f".{name}"
        return any(part.startswith(self._prefix) for part in name.split("."))

    def awake(self, model: nn.Module, backbone: set[int]) -> frozenset[str] | None:
        """Not all that is new: some of it has the backbone inside."""
        return frozenset(n for n, _ in model.named_modules() if self.trains(n) or "modules_to_save" in n.split("."))

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
