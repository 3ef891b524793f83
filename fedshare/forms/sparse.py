"""Mostly zero tensors in compact form: dense, or values with their positions, whichever is smaller."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedshare.forms import masks
from fedshare.payload import Payload
from fedshare.tensors import Tensors

GROUPS = ("values", "bits", "indices")


@dataclass(frozen=True)
class Sparse:
    """A group of an upload without zeros, if that is smaller: of an embedding, only the rows in use are sent."""

    group: str

    def encode(self, upload: Payload) -> Payload:
        tensors = upload.tensors[self.group]
        others = {group: named for group, named in upload.tensors.items() if group != self.group}
        packed = Payload(encode(tensors, {name: t != 0 for name, t in tensors.items()}) | others, upload.metrics)
        return packed if packed.nbytes < upload.nbytes else upload

    def decode(self, sent: Payload, expected: dict[str, Tensors]) -> Payload:
        if self.group in sent.tensors:
            return sent
        others = {group: named for group, named in sent.tensors.items() if group in expected}
        packed = {group: named for group, named in sent.tensors.items() if group not in expected}
        return Payload({self.group: decode(packed, expected[self.group])} | others, sent.metrics)


def encode(tensors: Tensors, kept: Tensors) -> dict[str, Tensors]:
    """Return the coordinates in `kept`, masks of the tensors' shapes; the others are dropped.

    A tensor in ``values`` is either dense, or a vector of its kept values; then ``bits`` has a packed mask
    (`fedshare.forms.masks`) or ``indices`` their positions as int32, or neither if nothing is kept.
    """
    groups: dict[str, Tensors] = {group: {} for group in GROUPS}
    for name, tensor in tensors.items():
        mask, size = kept[name].reshape(-1), tensor.numel()
        count = int(mask.sum())
        whole, bits, indices = size * tensor.element_size(), masks.packed_size(size), 4 * count
        beside = count * tensor.element_size() + min(bits, indices)
        if whole <= beside:
            groups["values"][name] = torch.where(kept[name], tensor, 0)
        else:
            groups["values"][name] = tensor.reshape(-1)[mask]
            if count and bits <= indices:
                groups["bits"][name] = masks.pack(mask)
            elif count:
                groups["indices"][name] = mask.nonzero().flatten().int()
    return {group: found for group, found in groups.items() if found}


def decode(groups: dict[str, Tensors], like: Tensors) -> Tensors:
    """Return the kept coordinates in tensors of the shapes of `like`, and zeros elsewhere.

    Raises ValueError, saying what is wrong, on anything that `encode` never returns for tensors of those shapes.
    """
    if unknown := sorted(map(str, groups.keys() - GROUPS)):
        raise ValueError(f"groups: has unknown {unknown[0]}")
    for group in GROUPS:
        if not isinstance(named := groups.get(group, {}), dict):
            raise ValueError(f"{group} is a {type(named).__name__}, not named tensors")
        if unknown := sorted(map(str, named.keys() - like.keys())):
            raise ValueError(f"{group}: has unknown {unknown[0]}")
    if lacking := sorted(like.keys() - groups.get("values", {}).keys()):
        raise ValueError(f"values: lacks {lacking[0]}")
    return {name: _decode(groups, name, tensor) for name, tensor in like.items()}


def _decode(groups: dict[str, Tensors], name: str, like: Tensor) -> Tensor:
    bits, indices = (groups.get(group, {}).get(name) for group in ("bits", "indices"))
    values = groups["values"][name]
    if bits is None and indices is None:
        if like.numel() and isinstance(values, Tensor) and values.shape == (0,):
            return torch.zeros_like(like)
        return _like(values, f"values: {name}", like.dtype, like.shape)
    count = _like(values, f"values: {name}", like.dtype).numel()
    if bits is not None:
        packed = torch.Size([masks.packed_size(like.numel())])
        places = masks.unpack(_like(bits, f"bits: {name}", torch.uint8, packed), like.numel()).nonzero().flatten()
    else:
        places = _like(indices, f"indices: {name}", torch.int32).long()
        if len(places) and not (places[0] >= 0 and places[-1] < like.numel() and bool((places.diff() > 0).all())):
            raise ValueError(f"indices: {name} are not ascending from 0 to {like.numel() - 1}")
    if len(places) != count:
        raise ValueError(f"values: {name} has {count} values for {len(places)} places")
    return torch.zeros_like(like).reshape(-1).index_copy(0, places, values).view(like.shape)


def _like(tensor: object, what: str, dtype: torch.dtype, shape: torch.Size | None = None) -> Tensor:
    """Return `tensor` if it has that type and shape, or, without a shape, one axis."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise ValueError(f"{what} is a {type(tensor).__name__}, not a dense tensor")
    if tensor.dtype != dtype:
        raise ValueError(f"{what} is {tensor.dtype}, not {dtype}")
    if tensor.ndim != 1 if shape is None else tensor.shape != shape:
        raise ValueError(f"{what} has shape {list(tensor.shape)}, not {'one axis' if shape is None else list(shape)}")
    return tensor
