"""Initial weights for a timm model, from safetensors only: timm itself would unpickle other files."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from fedshare.errors import UserError, brief, first_line


def download(config: Any) -> str:
    """Return the path of the weights that timm publishes as safetensors for a model."""
    if not config.hf_hub_id:
        raise UserError(f"Timm: pretrained: timm publishes no weights of {config.architecture} as safetensors")
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(config.hf_hub_id, "model.safetensors")
    except Exception as error:
        said = brief(first_line(error))
        raise UserError(f"Timm: pretrained: no model.safetensors of {config.hf_hub_id} on the hub: {said}") from error


def described(path: Path, config: Any) -> dict[str, Any]:
    """Return what timm must know of a safetensors file: its path, and the number of classes of its head."""
    shapes = read_shapes(path)
    heads = [f"{head}.weight" for head in heads_of(config)]
    return {"file": str(path), "num_classes": next((shapes[head][0] for head in heads if head in shapes), 0)}


def complete(model: nn.Module, path: str, config: Any) -> None:
    """Raise `UserError` if the file lacks a tensor of the model outside its head, which timm does not report."""
    known, apart = read_shapes(Path(path)).keys(), tuple(f"{head}." for head in heads_of(config))
    lacking = [n for n in model.state_dict() if n not in known and not n.startswith(apart)]
    if lacking:
        raise UserError(f"Timm: {path} lacks {lacking[0]}{f' and {len(lacking) - 1} more' if lacking[1:] else ''}")


def heads_of(config: Any) -> list[str]:
    """Return the names of the layers that depend on the classes; a few models have two."""
    return [config.classifier] if isinstance(config.classifier, str) else list(config.classifier or [])


def read_shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"Timm: {path} is damaged, or no .safetensors file: {first_line(error)}") from error
