"""Checks of a model's arguments before it is built."""

from collections.abc import Sequence

from fedshare.errors import UserError


def positive(model: str, **sizes: int | Sequence[int]) -> None:
    """Raise `UserError` unless every size, or every size in a list of them, is an integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, Sequence) and not isinstance(size, str):
            wanted, values = "a list of one or more whole numbers, each at least 1", list(size)
        else:
            wanted, values = "a whole number of at least 1", [size]
        if not values or not all(type(value) is int and value >= 1 for value in values):
            raise UserError(f"{model}: {name} is {size!r}; allowed is {wanted}")


def image(model: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width; raise `UserError` if `shape` is not that of an image."""
    positive(model, shape=shape)
    if len(shape) != 3:
        raise UserError(f"{model}: shape is {list(shape)}; allowed is [channels, height, width]")
    channels, height, width = shape
    return channels, height, width


def choice(model: str, name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{model}: {name} is {value!r}; allowed is {' or '.join(map(repr, allowed))}")


def dropout(model: str, probability: float) -> None:
    if not isinstance(probability, int | float) or not 0 <= probability < 1:
        raise UserError(f"{model}: dropout is {probability!r}; allowed is at least 0 and less than 1")
