"""Additive torchmetrics: each client sends its metric's states, and their sum gives the metric over all examples.

A metric's states must be sums, such as counts and confusion matrices. torchmetrics' own merging is not used: it keeps
a previously computed value, and weighs means wrongly (1.9). Only this file depends on torchmetrics, and it does not
import it: the code that builds a metric does.
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
SLACK = 1e-6  # how far rounding may take a metric beyond its best value


class _InFloat64(TorchFunctionMode):
    """Keep float64 where torchmetrics call `.float()` regardless of the metric's dtype, which would lose digits."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        return func(*args, **(kwargs or {}))


def check(name: str, metric: Any) -> None:
    """Raise UserError if `metric` is not a torchmetrics metric, or its states are not sums."""
    reductions = getattr(metric, "_reductions", None)
    if not isinstance(reductions, dict) or not hasattr(metric, "metric_state"):
        raise UserError(f"metrics.{name}: is a {type(metric).__name__}, not one of torchmetrics' metrics")
    for state, reduce in reductions.items():
        if getattr(reduce, "__name__", "") != "dim_zero_sum" or not isinstance(metric.metric_state[state], Tensor):
            hint = "; give it thresholds, such as thresholds=200" if hasattr(metric, "thresholds") else ""
            kind = type(metric).__name__
            raise UserError(f"metrics.{name}: {kind}'s {state} cannot be added up over clients{hint}")


def better(metric: Any) -> str | None:
    """Return ``higher`` or ``lower``; None if the metric does not say which is better."""
    return {True: "higher", False: "lower", None: None}[metric.higher_is_better]


def fresh(metric: Any) -> Any:
    """Return a copy of the metric, in float64, with its states reset."""
    made = copy.deepcopy(metric).cpu()
    made.reset()
    return made.set_dtype(torch.float64)


def states(metrics: Metrics) -> Tensors:
    return {f"{name}.{state}": value for name, m in metrics.items() for state, value in fresh(m).metric_state.items()}


def updated(metrics: Metrics, predictions: Tensor, targets: Tensor) -> Tensors:
    """Return the states after these predictions alone. Raises UserError if a metric cannot take them."""
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


def flaw(metrics: Metrics, sums: Tensors, most: int) -> str | None:
    """Return why at most `most` targets cannot give these metrics such states or values; None if they can."""
    for name, metric in metrics.items():
        for state, like in metric.metric_state.items():
            told = sums[f"{name}.{state}"]
            if not told.isfinite().all():
                return f"{name}.{state} holds NaN or infinity"
            counts = not like.is_floating_point() and type(metric).__module__.startswith("torchmetrics.")
            if counts and told.numel():  # nothing is known of metrics that are not torchmetrics' own
                least, total, limit = float(told.min()), float(told.sum()), float(most * _per_target(metric, state))
                if least < 0 or total > limit:
                    return f"{name}.{state} counts {least:g} to {total:g} in all, not 0 to {limit:g}"
        if not sums["examples"]:
            continue
        try:
            value = scores({name: metric}, sums)[name]
        except UserError:
            raise
        except Exception as error:  # torchmetrics' own checks, of many types
            return f"{name}: {first_line(error)}"
        if (best := _best(metric)) is not None and (value - best) * (1 if better(metric) == "higher" else -1) > SLACK:
            return f"{name} is {value:g}, and cannot be better than {best:g}"
    return None


def _per_target(metric: Any, state: str) -> int:
    """Return the most that one target adds to the sum of a state of counts, for torchmetrics' own metrics."""
    thresholds = getattr(metric, "thresholds", None)
    count = len(thresholds) if isinstance(thresholds, Tensor) and thresholds.ndim else 1
    classes = getattr(metric, "num_classes", None) or getattr(metric, "num_labels", None) or 1
    # At each threshold, a target is right or wrong for each class; but it has only one class.
    return count * classes if count > 1 or state in ("tn", "fp") else 1


def _best(metric: Any) -> float | None:
    """Return the best possible value if torchmetrics gives it. Its other bound is not reliable: R2 can be below 0."""
    which = {"higher": "plot_upper_bound", "lower": "plot_lower_bound"}.get(str(better(metric)))
    found = getattr(metric, which, None) if which else None
    return None if found is None else float(found)


def scores(metrics: Metrics, sums: Tensors) -> dict[str, float]:
    """Return the value of each metric. Raises UserError if one gives several numbers."""
    found = {}
    for name, metric in metrics.items():
        made = fresh(metric)
        for state in made.metric_state:
            setattr(made, state, sums[f"{name}.{state}"].clone())
        with warnings.catch_warnings(), _InFloat64():
            warnings.simplefilter("ignore")  # warnings about a missing update or an absent class
            value = made.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"task.metrics.{name}: gives several numbers; average=macro or micro gives one")
        found[name] = float(value)
    return found


def binary(metric: Any, predictions: Tensor) -> Tensor:
    """Return, for a metric of two classes, the probability of the second; for others, the predictions unchanged."""
    two = predictions.ndim == 2 and predictions.shape[1] == 2
    return predictions[:, 1] if two and type(metric).__name__.startswith("Binary") else predictions
