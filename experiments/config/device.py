"""The device named in a config."""

import difflib

import torch

from fedshare.errors import UserError, first_line

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_CALLED = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}


def device_of(name: str) -> torch.device:
    try:
        torch.device(name)
    except RuntimeError as error:
        word = name.lower().rstrip("0123456789")
        close = [_CALLED[word]] if word in _CALLED else difflib.get_close_matches(word, _DEVICES, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"device={name}: no such device{hint}; allowed: {', '.join(_DEVICES)}, cuda:1, ...") from error
    try:
        (torch.ones(1, device=name) + 1).item()
    except Exception as error:
        raise UserError(f"device={name}: {first_line(error).split('. ')[0]}") from error
    return torch.device(name)
