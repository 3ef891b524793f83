"""The memory of a server or client: plain nested data and tensors, saved and digested to the bit.

A state is a dict of dicts, lists, tensors, str, int, float, bool and None; dict keys are str or int. It is stored as
one safetensors file whose metadata hold the nesting as JSON. Nothing is pickled.
"""

import hashlib
import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedshare.tensors import digest as tensor_digest

State = dict[str, Any]


def pack(state: State) -> bytes:
    """Return `state` as the bytes of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    places: dict[int, str] = {}  # a tensor that appears twice is stored once
    memories: set[int] = set()

    def outline(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in places:
                places[id(value)] = str(len(places))
                whole = value.detach().cpu().contiguous()
                # safetensors rejects tensors that share memory, as views do.
                memory = whole.untyped_storage()
                viewed = memory.nbytes() > whole.nbytes or memory.data_ptr() in memories
                memories.add(memory.data_ptr())
                tensors[places[id(value)]] = whole.clone() if viewed else whole
            return {"tensor": places[id(value)]}
        if isinstance(value, dict):
            if wrong := [key for key in value if type(key) not in (str, int)]:
                raise TypeError(f"{path}: a key of a state is a str or an int, not {wrong[0]!r}")
            # Pairs instead of a JSON object, which would turn int keys to str and does not guarantee their order.
            return {"dict": [[key, outline(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, list):
            return [outline(item, f"{path}/{position}") for position, item in enumerate(value)]
        if value is None or type(value) in (str, int, float, bool):
            return value
        raise TypeError(f"{path}: a state cannot hold a {type(value).__name__}")

    text = json.dumps(outline(state, "state"), separators=(",", ":"))
    return save_tensors(tensors, metadata={"outline": text})


def unpack(data: bytes) -> State:
    """Return the state that `pack` encoded. Raises ValueError, saying what is wrong, on any other bytes."""
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + length])["__metadata__"]["outline"]
        state = _restore(json.loads(text), tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not a packed state: {error}") from error
    if not isinstance(state, dict):
        raise ValueError("not a packed state: its outline is not a dict")
    return state


def _restore(outline: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(outline, dict):
        if "tensor" in outline:
            return tensors[outline["tensor"]]
        return {key: _restore(item, tensors) for key, item in outline["dict"]}
    if isinstance(outline, list):
        return [_restore(item, tensors) for item in outline]
    return outline


def copied(value: Any) -> Any:
    """Return new dicts and lists with the same tensors."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def nbytes(value: Any) -> int:
    """Return the bytes of all tensors in it."""
    if isinstance(value, dict | list):
        return sum(map(nbytes, value.values() if isinstance(value, dict) else value))
    return value.nbytes if isinstance(value, Tensor) else 0


def digests(state: State) -> dict[str, str]:
    """Return the SHA-256 of each leaf by its path, sorted: ``params/w``, ``#3/w`` (an int), ``log/@0`` (a list)."""
    leaves: dict[str, str] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            leaves[path] = tensor_digest(value)
        elif isinstance(value, dict | list) and value:
            parts = (
                [(_named(key), item) for key, item in value.items()]
                if isinstance(value, dict)
                else [(f"@{position}", item) for position, item in enumerate(value)]
            )
            for part, item in parts:
                visit(item, f"{path}/{part}" if path else part)
        else:
            leaves[path] = hashlib.sha256(f"{type(value).__name__} {json.dumps(value)}".encode()).hexdigest()

    visit(state, "")
    return dict(sorted(leaves.items())) if state else {}


def _named(key: str | int) -> str:
    """Return a key's part of a path, unique among keys."""
    return f"#{key}" if isinstance(key, int) else key.translate(_ESCAPES)


_ESCAPES = str.maketrans({"~": "~0", "/": "~1", "#": "~2", "@": "~3"})
