"""Language models in the first file format of llama2.c (Karpathy 2023): stories260K and larger models of its kind."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedshare.errors import UserError
from fedshare.models.llama import Llama
from fedshare.weights import locate

HEADER = 7 * 4  # bytes: seven int32, in the order of `Config`


@dataclass(frozen=True)
class Config:
    """A file's header, in the file's order; the numbers are explained in `Llama`."""

    dim: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    vocabulary: int
    length: int  # the longest text in training


class Array(NamedTuple):
    """One array of a file: the parameter of `Llama` that it holds; braces in the name stand for every block."""

    name: str
    shape: tuple[int, ...]


def arrays(config: Config) -> list[Array]:
    """Return the arrays that follow the header, all float32, in the file's order."""
    dim, depth, hidden = config.dim, config.depth, config.hidden
    shared = dim // config.heads * config.kv_heads
    return [
        Array("embed.weight", (config.vocabulary, dim)),
        Array("blocks.{}.norm1.weight", (depth, dim)),
        Array("blocks.{}.attn.q_proj.weight", (depth, dim, dim)),
        Array("blocks.{}.attn.k_proj.weight", (depth, shared, dim)),
        Array("blocks.{}.attn.v_proj.weight", (depth, shared, dim)),
        Array("blocks.{}.attn.o_proj.weight", (depth, dim, dim)),
        Array("blocks.{}.norm2.weight", (depth, dim)),
        Array("blocks.{}.mlp.gate_proj.weight", (depth, hidden, dim)),
        Array("blocks.{}.mlp.down_proj.weight", (depth, dim, hidden)),
        Array("blocks.{}.mlp.up_proj.weight", (depth, hidden, dim)),
        Array("norm.weight", (dim,)),
        Array("cos", (config.length, dim // config.heads // 2)),
        Array("sin", (config.length, dim // config.heads // 2)),
    ]


def read_llama2c(path: Path) -> tuple[Config, dict[str, Tensor]]:
    """Return the header, and the tensors by their names in `Llama`, including the two rotary tables.

    Raise `UserError` if the file has another format, is truncated, or has a separate output layer.
    """
    if not path.is_file():
        raise UserError(f"{path}: is a folder; a llama2.c checkpoint is one file, such as stories260K.bin")
    size = path.stat().st_size
    config = Config(*np.fromfile(path, "<i4", 7).tolist()) if size >= HEADER else Config(*[0] * 7)
    if config.vocabulary < 0 and min(config.dim, config.hidden, config.depth, config.length) > 0:
        raise UserError(f"{path}: its output layer is not its embedding; allowed is a model whose output layer is")
    if min(vars(config).values()) < 1 or config.dim % (2 * config.heads) or config.heads % config.kv_heads:
        raise UserError(f"{path}: not a llama2.c checkpoint of the first format, by its first {HEADER} bytes")
    wanted = arrays(config)
    # Checked before reading: a wrong header may ask for any amount of memory.
    if size != (expected := HEADER + 4 * sum(prod(array.shape) for array in wanted)):
        raise UserError(f"{path}: damaged, or no llama2.c checkpoint: {size} bytes, and its header asks for {expected}")
    values = torch.from_numpy(np.fromfile(path, "<f4", offset=HEADER).astype(np.float32, copy=False))
    if not values.isfinite().all():
        raise UserError(f"{path}: damaged: not all of its numbers are finite")
    tensors: dict[str, Tensor] = {}
    for array, piece in zip(wanted, values.split([prod(array.shape) for array in wanted]), strict=True):
        tensor = piece.view(array.shape)
        if "{}" in array.name:
            tensors |= {array.name.format(block): part for block, part in enumerate(tensor)}
        else:
            tensors[array.name] = tensor
    return config, tensors


class Llama2c(Llama):
    """A `Llama` with the sizes and weights of a llama2.c file, for texts no longer than its training texts.

    `checkpoint` is a path, or a name below the data folder's ``weights``.
    """

    def __init__(self, vocabulary: int, length: int, classes: int, checkpoint: str) -> None:
        config, tensors = read_llama2c(path := locate(checkpoint, "checkpoint"))
        if vocabulary != config.vocabulary:
            raise UserError(f"{path}: vocabulary is {vocabulary}; allowed is {config.vocabulary}, as in the file")
        if length > config.length:
            raise UserError(f"{path}: length is {length}; allowed is up to {config.length}, as it was trained")
        sizes = (config.dim, config.depth, config.heads, config.kv_heads, config.hidden)
        super().__init__(vocabulary, config.length, classes, *sizes)
        own = self.state_dict().keys()  # without the tables, which are recomputed
        self.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own})
