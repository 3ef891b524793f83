"""How a plan is called again and again: operation by operation, or on a CUDA device recorded once as a CUDA graph."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fedshare.errors import brief, first_line

Function = Callable[..., Sequence[Tensor]]  # takes tensors, of the same form in every call
WARM_UP = 2  # calls before a recording: in the first ones, libraries choose their kernels and allocate memory


class Kernels(Protocol):
    """Work on a device that is recorded once."""

    def record(self, work: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Return the tensors in which `replay` leaves what `work` returns. Raises RuntimeError if it cannot."""
        ...

    def replay(self) -> None: ...


Start = Callable[[torch.device], Callable[[], Kernels] | None]  # what makes `Kernels` for a device; None: nothing does


class Recorded:
    """A function whose kernels are launched together. Its results are valid until the next call, and may be changed."""

    def __init__(self, function: Function, values: Sequence[Tensor], kernels: Kernels) -> None:
        self._inputs, self._kernels = [value.clone() for value in values], kernels
        self._results = kernels.record(partial(function, *self._inputs))

    def __call__(self, *values: Tensor) -> Sequence[Tensor]:
        for own, value in zip(self._inputs, values, strict=True):
            own.copy_(value)
        self._kernels.replay()
        return self._results


class Replays:
    """Prepares functions to be called again and again.

    `make` makes the recording of one; without it, functions are called as they are, and so is one that cannot be
    recorded, which `say` is told.
    """

    def __init__(self, make: Callable[[], Kernels] | None, say: Callable[[str], None]) -> None:
        self._make, self._say = make, say

    def __call__(self, function: Function, values: Sequence[Tensor]) -> Function:
        if self._make is None:
            return function
        try:
            return Recorded(function, values, self._make())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # A capture that fails raises once more when it ends. No variable holds the first error: it holds memory.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            reason = brief(first_line(error.__context__ or error), 120)
            self._say(f"a step that cannot be recorded is launched kernel by kernel: {reason}")
            return function


class CudaGraph:
    """`Kernels` on a CUDA device. All of `captured` share memory: only the last one replayed has its results."""

    def __init__(self, stream: torch.cuda.Stream, captured: list[torch.cuda.CUDAGraph]) -> None:
        self._stream, self._captured, self._graph = stream, captured, torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        pool = self._captured[0].pool() if self._captured else None
        with torch.cuda.device(self._stream.device):
            here = torch.cuda.current_stream()
            with torch.cuda.stream(here):  # where a capture that fails would not return to
                self._stream.wait_stream(here)
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UP):
                        work()
                here.wait_stream(self._stream)
                with torch.cuda.graph(self._graph, pool=pool, stream=self._stream):
                    results = work()
        self._captured.append(self._graph)
        return results

    def replay(self) -> None:
        self._graph.replay()


def cuda_graphs(device: torch.device) -> Callable[[], Kernels] | None:
    """Return what makes CUDA graphs that share memory; None if `device` is none of CUDA's."""
    return partial(CudaGraph, torch.cuda.Stream(device), []) if device.type == "cuda" else None
