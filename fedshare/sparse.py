"""Tensors of which most is zero, as they travel: whole, or their values and where these are, whichever is smaller."""

import torch
from torch import Tensor

from fedshare import masks
from fedshare.tensors import Tensors


def encode(tensors: Tensors, kept: Tensors) -> dict[str, Tensors]:
    """The coordinates `kept`, masks of the tensors' shapes; what is not kept is lost.

    A tensor is in ``values`` in its own shape; or its kept values are, in a vector, and beside them in ``bits`` a mask,
    packed (`fedshare.masks`), or in ``indices`` their places as int32. Where nothing of it is kept, it is not there.
    """
    groups: dict[str, Tensors] = {"values": {}, "bits": {}, "indices": {}}
    for name, tensor in tensors.items():
        mask, size = kept[name].reshape(-1), tensor.numel()
        count = int(mask.sum())
        whole, bits, indices = size * tensor.element_size(), masks.packed_size(size), 4 * count
        beside = count * tensor.element_size() + min(bits, indices)
        if whole <= beside:
            groups["values"][name] = torch.where(kept[name], tensor, 0)
        elif count:
            groups["values"][name] = tensor.reshape(-1)[mask]
            if bits <= indices:
                groups["bits"][name] = masks.pack(mask)
            else:
                groups["indices"][name] = mask.nonzero().flatten().int()
    return {group: found for group, found in groups.items() if found}


def decode(groups: dict[str, Tensors], like: Tensors) -> Tensors:
    """What `encode` kept, in tensors of the shapes of `like`, and zeros elsewhere."""
    return {name: _decode(groups, name, tensor) for name, tensor in like.items()}


def _decode(groups: dict[str, Tensors], name: str, like: Tensor) -> Tensor:
    values = groups.get("values", {}).get(name)
    if values is None:
        return torch.zeros_like(like)
    if (bits := groups.get("bits", {}).get(name)) is not None:
        places = masks.unpack(bits, like.numel()).nonzero().flatten()
    elif (indices := groups.get("indices", {}).get(name)) is not None:
        places = indices.long()
    else:
        return values
    return torch.zeros_like(like).reshape(-1).index_copy(0, places, values).view(like.shape)
