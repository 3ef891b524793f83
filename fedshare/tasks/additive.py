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
SLACK = 1e-6  # by how much a rounding may take a metric beyond its best value


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


def flaw(metrics: Metrics, sums: Tensors, most: int) -> str | None:
    """Why these metrics of at most `most` targets cannot have such states, or be as good; None where they can."""
    for name, metric in metrics.items():
        for state, like in metric.metric_state.items():
            told = sums[f"{name}.{state}"]
            if not told.isfinite().all():
                return f"{name}.{state} holds NaN or infinity"
            counts = not like.is_floating_point() and type(metric).__module__.startswith("torchmetrics.")
            if counts and told.numel():  # of metrics that are not torchmetrics' own nothing is known
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
    """What a target adds at most to all elements of a state of counts together, of one of torchmetrics' own metrics."""
    thresholds = getattr(metric, "thresholds", None)
    count = len(thresholds) if isinstance(thresholds, Tensor) and thresholds.ndim else 1
    classes = getattr(metric, "num_classes", None) or getattr(metric, "num_labels", None) or 1
    # One target is right or wrong about each class, at each threshold; but it has one class only.
    return count * classes if count > 1 or state in ("tn", "fp") else 1


def _best(metric: Any) -> float | None:
    """The best value there is, where torchmetrics says it. Its other bound is not always one: R2 can be below 0."""
    which = {"higher": "plot_upper_bound", "lower": "plot_lower_bound"}.get(str(better(metric)))
    found = getattr(metric, which, None) if which else None
    return None if found is None else float(found)


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
