"""Any image model of timm, PyTorch Image Models (Wightman 2019)."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fedshare.errors import UserError, brief
from fedshare.machine.extras import importing
from fedshare.models import check
from fedshare.models.timm_weights import complete, described, download
from fedshare.weights import locate


class Timm:
    """Images ``[batch, channels, height, width]`` to logits ``[batch, classes]``, by the model `name` of timm.

    The module is timm's own, with timm's names, so PEFT finds ``blocks`` and ``cls_token`` of a transformer, and its
    ``head``; other architectures call the last layer ``fc`` or ``classifier``. Images of another size than the model's
    are resized bilinearly before its `forward`. That size is `size`, or timm's size for the model, usually 224.
    `options` are further arguments of the architecture.

    Weights are those that timm publishes, with `pretrained`; or those of `checkpoint`, a safetensors file with timm's
    names, given by its path or its name below the data folder's ``weights``. As in timm, weights are adapted to another
    number of channels, another size or other classes. Only safetensors files are read.
    """

    def __new__(  # type: ignore[misc]  # returns timm's own module
        cls,
        name: str,
        shape: Sequence[int],
        classes: int,
        size: int | None = None,
        pretrained: bool = False,
        checkpoint: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        channels, _, _ = check.image("Timm", shape)
        check.positive("Timm", classes=classes, **({} if size is None else {"size": size}))
        with importing("timm", "Timm"):
            import timm
        if not timm.is_model(name.partition(".")[0]):
            near = get_close_matches(name, timm.list_models(), 3)
            hint = f" (did you mean {', '.join(near)}?)" if near else "; timm.list_models() has all names"
            raise UserError(f"Timm: there is no model {name}{hint}")
        arguments = dict(options or {})
        weights: dict[str, Any] = {}
        try:
            config = timm.get_pretrained_cfg(name)
            if size and config.fixed_input_size:
                arguments["img_size"] = size
            if checkpoint:
                weights = described(locate(checkpoint, "checkpoint"), config)
            elif pretrained:
                weights = {"file": download(config)}
            model = timm.create_model(
                name,
                pretrained=bool(weights),
                pretrained_cfg_overlay=weights | {"custom_load": False} if weights else None,
                num_classes=classes,
                in_chans=channels,
                **arguments,
            )
            if checkpoint:
                complete(model, weights["file"], config)
        except UserError:
            raise
        except Exception as error:  # of any type: timm has a thousand constructors
            raise UserError(f"Timm: {name}: {brief(' '.join(str(error).split()))}") from error
        height, width = (size, size) if size else config.input_size[1:]
        model.register_forward_pre_hook(partial(resized, size=(height, width)))
        return model


def resized(model: nn.Module, inputs: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor]:
    """Return the images at the model's size."""
    (x,) = inputs
    return (x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False),)
