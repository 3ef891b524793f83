"""torchmetrics that can be added up: each client's states travel, and the metric of their sum is that of all examples.

What a metric accumulates must be sums, such as counts and confusion matrices. torchmetrics' own ways to merge are not
used: they keep a value that was computed before, and weigh means wrongly (1.9). This file alone knows torchmetrics, and
does not load it: whoever names a metric has.
"""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fedshare.errors import UserError, first_line
from fedshare.tensors import Tensors

Metrics = Mapping[str, Any]


class _InFloat64(TorchFunctionMode):
    """torchmetrics say `.float()` in places, whatever a metric's dtype is, and 1e-9 of a result is lost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        return func(*args, **(kwargs or {}))


def check(name: str, metric: Any) -> None:
    """Raise UserError where `metric` is no torchmetrics' metric, or its states are not sums."""
    reductions = getattr(metric, "_reductions", None)
    if not isinstance(reductions, dict) or not hasattr(metric, "metric_state"):
        raise UserError(f"metrics.{name}: is a {type(metric).__name__}, not one of torchmetrics' metrics")
    for state, reduce in reductions.items():
        if getattr(reduce, "__name__", "") != "dim_zero_sum" or not isinstance(metric.metric_state[state], Tensor):
            hint = "; give it thresholds, such as thresholds=200" if hasattr(metric, "thresholds") else ""
            kind = type(metric).__name__
            raise UserError(f"metrics.{name}: {kind}'s {state} cannot be added up over clients{hint}")


def better(metric: Any) -> str | None:
    """``higher`` or ``lower``; None where the metric does not say."""
    return {True: "higher", False: "lower", None: None}[metric.higher_is_better]


def fresh(metric: Any) -> Any:
    """A metric of its own, in float64, that has seen nothing."""
    made = copy.deepcopy(metric).cpu()
    made.reset()
    return made.set_dtype(torch.float64)


def states(metrics: Metrics) -> Tensors:
    return {f"{name}.{state}": value for name, m in metrics.items() for state, value in fresh(m).metric_state.items()}


def updated(metrics: Metrics, predictions: Tensor, targets: Tensor) -> Tensors:
    """The states after these predictions alone. Raises UserError where a metric cannot take them."""
    found: Tensors = {}
    for name, metric in metrics.items():
        made = fresh(metric)
        if len(targets):
            try:
                with _InFloat64():
                    made.update(binary(metric, predictions.cpu()), targets.cpu())
            except (ValueError, RuntimeError, TypeError, IndexError) as error:
                raise UserError(f"task.metrics.{name}: {first_line(error)}") from error
        found |= {f"{name}.{state}": value for state, value in made.metric_state.items()}
    return found


def scores(metrics: Metrics, sums: Tensors) -> dict[str, float]:
    """The value of each metric. Raises UserError where one gives several numbers."""
    found = {}
    for name, metric in metrics.items():
        made = fresh(metric)
        for state in made.metric_state:
            setattr(made, state, sums[f"{name}.{state}"].clone())
        with warnings.catch_warnings(), _InFloat64():
            warnings.simplefilter("ignore")  # it was never updated, and a class may be absent
            value = made.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"task.metrics.{name}: gives several numbers; average=macro or micro gives one")
        found[name] = float(value)
    return found


def binary(metric: Any, predictions: Tensor) -> Tensor:
    """For a metric of two classes, the probability of the second of them."""
    two = predictions.ndim == 2 and predictions.shape[1] == 2
    return predictions[:, 1] if two and type(metric).__name__.startswith("Binary") else predictions
