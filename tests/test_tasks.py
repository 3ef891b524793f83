"""Tasks: losses and their denominators, sums that add up to the metrics of all, targets as people have them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import ExplainedVariance, MeanAbsoluteError, MeanSquaredError, Metric, R2Score, SpearmanCorrCoef
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MultilabelAUROC,
    MultilabelF1Score,
)

from fedshare import seeds
from fedshare.data.dataset import Dataset, Examples
from fedshare.errors import UserError
from fedshare.tasks import Classification, LanguageModel, Losses, MultiLabel, Regression, Segmentation, Task, models
from fedshare.tasks.task import add

COUNT, CLASSES = 23, 4


def drawn(*shape: int, key: str = "outputs") -> Tensor:
    return torch.randn(*shape, generator=seeds.generator("tasks", key))


def classes(*shape: int, ignored: int | None = None, share: float = 0.3) -> Tensor:
    random = seeds.generator("tasks", "targets")
    y = torch.randint(CLASSES, shape, generator=random)
    return y if ignored is None else y.masked_fill(torch.rand(shape, generator=random) < share, ignored)


MADE: dict[str, tuple[Task, Tensor, Tensor]] = {
    "classification": (Classification(), drawn(COUNT, CLASSES), classes(COUNT)),
    "ignored": (Classification(), drawn(COUNT, CLASSES), classes(COUNT, ignored=-100)),
    "ignore_index": (Classification(ignore_index=3), drawn(COUNT, CLASSES), classes(COUNT)),
    "weights": (Classification(class_weights=[1, 5, 0.5, 0]), drawn(COUNT, CLASSES), classes(COUNT)),
    "smoothing": (
        Classification(class_weights=[1, 5, 0.5, 2], label_smoothing=0.2),
        drawn(COUNT, CLASSES),
        classes(COUNT, ignored=-100),
    ),
    "language": (LanguageModel(), drawn(COUNT, 5, CLASSES), classes(COUNT, 5, ignored=-100)),
    "segmentation": (Segmentation(), drawn(COUNT, CLASSES, 3, 2), classes(COUNT, 3, 2, ignored=255)),
    "multilabel": (MultiLabel(), drawn(COUNT, 3), (drawn(COUNT, 3, key="labels") > 0).to(torch.int8)),
    "regression": (Regression(), drawn(COUNT, 1), drawn(COUNT, key="numbers").double()),
    "several numbers": (Regression(loss="mae"), drawn(COUNT, 3), drawn(COUNT, 3, key="numbers")),
}


def reference(task: Task, outputs: Tensor, targets: Tensor) -> Tensor:
    """The batch's mean loss as torch has it."""
    if isinstance(task, Classification):
        logits = outputs.movedim(1, -1) if isinstance(task, Segmentation) else outputs
        weight = None if task.class_weights is None else torch.tensor([float(w) for w in task.class_weights])
        known = targets.masked_fill(targets == task.ignore_index, -100)
        settings: dict[str, Any] = {"weight": weight, "label_smoothing": task.label_smoothing}
        return F.cross_entropy(logits.flatten(0, -2), known.flatten(), **settings)
    if isinstance(task, MultiLabel):
        return F.binary_cross_entropy_with_logits(outputs, targets.float())
    loss = F.mse_loss if task.loss == "mse" else F.l1_loss
    return loss(outputs.reshape(targets.shape), targets.float())


@pytest.mark.parametrize("name", MADE)
def test_the_mean_is_torchs_and_batches_of_any_size_average_exactly(name: str) -> None:
    task, outputs, targets = MADE[name]
    whole = task.losses(outputs, targets)
    torch.testing.assert_close(whole.mean(), reference(task, outputs, targets))
    parts = [task.losses(o, t) for o, t in zip(outputs.split(5), targets.split(5), strict=True)]
    for kind in ("sums", "weights"):
        torch.testing.assert_close(torch.cat([getattr(part, kind) for part in parts]), getattr(whole, kind))
    assert whole.sums.shape == whole.weights.shape == (COUNT,)


@pytest.mark.parametrize("name", MADE)
def test_an_example_alone_is_what_it_is_among_others(name: str) -> None:
    task, outputs, targets = MADE[name]
    together = task.alone(outputs, targets)
    apart = torch.cat([task.alone(outputs[row : row + 1], targets[row : row + 1]) for row in range(COUNT)])
    torch.testing.assert_close(together, apart)
    if name == "weights":  # in full, where the mean over a batch of one would cancel them
        plain = Classification().alone(outputs, targets)
        torch.testing.assert_close(together, plain * torch.tensor([1, 5, 0.5, 0])[targets])


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (Classification(), drawn(2, CLASSES), torch.full((2,), -100)),
        (Classification(class_weights=[0, 1, 1, 1]), drawn(2, CLASSES), torch.zeros(2, dtype=torch.int64)),
        (LanguageModel(), drawn(2, 3, CLASSES), torch.full((2, 3), -100)),
        (Segmentation(), drawn(2, CLASSES, 3, 3), torch.full((2, 3, 3), 255)),
        (MultiLabel(), drawn(2, 3), torch.full((2, 3), -100, dtype=torch.int8)),
        (Classification(loss=nn.CrossEntropyLoss()), drawn(2, CLASSES), torch.full((2,), -100)),
        (Classification(loss=nn.CrossEntropyLoss()), drawn(0, CLASSES), torch.zeros(0, dtype=torch.int64)),
    ],
)
def test_a_batch_without_a_target_has_loss_and_gradient_0(task: Task, outputs: Tensor, targets: Tensor) -> None:
    outputs = outputs.clone().requires_grad_()
    loss = task.train_losses(outputs, targets).mean()
    loss.backward()
    assert loss.item() == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()
    assert task.scores(task.sums(outputs, targets))["examples"] == 0 or "weights" in repr(task)


# One's own loss


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets) ** 2


def pairs(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return (outputs - targets) ** 2, torch.ones(len(targets), dtype=outputs.dtype)


@pytest.mark.parametrize("loss", [squared, squares, pairs, nn.MSELoss()])
def test_a_loss_of_ones_own_is_the_same_whatever_it_gives(loss: Callable[[Tensor, Tensor], Any]) -> None:
    _, outputs, targets = MADE["regression"]
    targets = targets.float()
    own, built_in = Regression(loss=loss), Regression()
    torch.testing.assert_close(own.losses(outputs, targets).mean(), built_in.losses(outputs, targets).mean())
    torch.testing.assert_close(own.alone(outputs, targets), built_in.alone(outputs, targets))
    scores, others = (task.scores(task.sums(outputs, targets)) for task in (own, built_in))
    assert scores["loss"] == pytest.approx(others["loss"], rel=1e-9)


def test_a_mean_stands_for_as_many_targets_as_count() -> None:
    task, outputs, targets = MADE["language"]
    own = LanguageModel(loss=lambda o, y: F.cross_entropy(o.flatten(0, -2), y.flatten()))
    halves = [own.losses(o, t) for o, t in zip(outputs.split(12), targets.split(12), strict=True)]
    whole = Losses(torch.cat([half.sums for half in halves]), torch.cat([half.weights for half in halves]))
    torch.testing.assert_close(whole.mean(), task.losses(outputs, targets).mean())


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (lambda o, y: 3.0, r"task.loss: gives float; must be a mean, a loss for each example, \[23\], or"),
        (lambda o, y: (o - y.unsqueeze(1)) ** 2, r"task.loss: gives \[23, 23\]; must be a mean"),
        (lambda o, y: None, "task.loss: gives NoneType"),
        (lambda o, y: (o.sum(), torch.tensor(23.0)), r"task.loss: gives \[\] and \[\]; must be a mean"),
        (lambda o, y: ((o - y) ** 2, 1), r"task.loss: gives \[23\] and int; .* its sum and what to divide it by"),
        (lambda o, y: [o - y], "task.loss: gives list"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Callable[[Tensor, Tensor], Any], line: str) -> None:
    _, outputs, targets = MADE["regression"]
    with pytest.raises(UserError, match=line):
        Regression(loss=loss).losses(outputs, targets)


def test_a_loss_that_holds_numbers_of_its_own_type_is_tested_in_that() -> None:
    _, outputs, targets = MADE["classification"]
    weights = [1.0, 5.0, 0.5, 2.0]
    own = Classification(loss=nn.CrossEntropyLoss(weight=torch.tensor(weights)))  # in float32
    assert math.isfinite(own.scores(own.sums(outputs, targets))["loss"])


# Metrics


def exact(metric: Metric) -> Metric:
    """torchmetrics compute in float32, in which 1e-9 cannot be seen; some of them whatever their type is."""
    return metric.set_dtype(torch.float64)


MEASURED: dict[str, tuple[Task, Tensor, Tensor, Callable[[Tensor, Tensor], dict[str, float]]]] = {
    "classes": (
        Classification(
            metrics={
                "f1": MulticlassF1Score(num_classes=CLASSES),
                "auroc": MulticlassAUROC(num_classes=CLASSES, thresholds=50),
            }
        ),
        drawn(COUNT, CLASSES),
        classes(COUNT, ignored=-100),
        lambda o, y: {
            "f1": exact(MulticlassF1Score(num_classes=CLASSES, ignore_index=-100))(o, y),
            "auroc": exact(MulticlassAUROC(num_classes=CLASSES, thresholds=50, ignore_index=-100))(o.softmax(1), y),
        },
    ),
    "two classes": (
        Classification(metrics={"auroc": BinaryAUROC(thresholds=50)}),
        drawn(COUNT, 2),
        classes(COUNT) % 2,
        lambda o, y: {"auroc": exact(BinaryAUROC(thresholds=50))(o.double().softmax(1)[:, 1], y)},
    ),
    "pixels": (
        Segmentation(metrics={"iou": MulticlassJaccardIndex(num_classes=CLASSES)}, headline="iou"),
        drawn(COUNT, CLASSES, 3, 2),
        classes(COUNT, 3, 2, ignored=255),
        lambda o, y: {"iou": jaccard_score(y[y != 255], o.argmax(1)[y != 255], average="macro")},
    ),
    "labels": (
        MultiLabel(
            metrics={"f1": MultilabelF1Score(num_labels=3), "auroc": MultilabelAUROC(num_labels=3, thresholds=50)}
        ),
        # All within 0 and 1: torchmetrics would take such logits for probabilities.
        drawn(COUNT, 3).sigmoid(),
        (drawn(COUNT, 3, key="labels") > 0).to(torch.int8),
        lambda o, y: {
            "f1": exact(MultilabelF1Score(num_labels=3))(o.double().sigmoid(), y.long()),
            "auroc": exact(MultilabelAUROC(num_labels=3, thresholds=50))(o.double().sigmoid(), y.long()),
        },
    ),
    "numbers": (
        Regression(
            metrics={"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score(), "ev": ExplainedVariance()}
        ),
        drawn(COUNT, 1),
        drawn(COUNT, key="numbers").double() + 100,
        lambda o, y: {
            name: exact(metric)(o.double()[:, 0], y)
            for name, metric in {
                "mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score(), "ev": ExplainedVariance()
            }.items()
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_sums_of_clients_give_the_metrics_of_the_pooled_predictions(name: str) -> None:
    task, outputs, targets, central = MEASURED[name]
    total = task.zeros()
    for some, wanted in zip(outputs.split([1, 2, 11, 9]), targets.split([1, 2, 11, 9]), strict=True):
        found = task.sums(some, wanted)
        assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in total.items()}
        total = add(total, found)
    scores = task.scores(total)
    for metric, value in central(outputs, targets).items():
        assert scores[metric] == pytest.approx(float(value), rel=1e-9, abs=1e-12), metric
    assert scores["loss"] == pytest.approx(float(task.losses(outputs.double(), targets).mean()), rel=1e-9)
    assert next(iter(scores)) == task.compared


def test_accuracy_and_perplexity_by_hand() -> None:
    task, outputs, targets = MADE["language"]
    scores = task.scores(task.sums(outputs, targets))
    there = targets != -100
    assert scores["accuracy"] == float((outputs.argmax(-1) == targets)[there].double().mean())
    assert scores["examples"] == int(there.sum())
    loss = F.cross_entropy(outputs.double()[there], targets[there])
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-9)
    assert next(iter(scores)) == "accuracy"


def test_a_large_output_is_taken_apart_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    task, outputs, targets, _ = MEASURED["pixels"]
    whole = task.sums(outputs, targets)
    monkeypatch.setattr("fedshare.tasks.task.CHUNK", 2 * outputs[0].numel() + 1)
    parts = task.sums(outputs, targets)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=0)


def test_the_headline_says_which_way_is_better() -> None:
    assert Classification().compared == "accuracy"
    assert Classification().higher
    assert not Regression().higher  # the loss
    mse = {"mse": MeanSquaredError(), "r2": R2Score()}
    assert (Regression(metrics=mse).compared, Regression(metrics=mse).higher) == ("mse", False)
    assert Regression(metrics=mse, headline="r2").higher
    assert Classification(headline="loss").higher is False
    assert LanguageModel(headline="perplexity").higher is False


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Classification(loss="bce"), "loss=bce: must be cross_entropy, or a function of your own"),
        (lambda: Classification(headline="f1"), "headline=f1: must be one of accuracy, loss"),
        (lambda: Classification(label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda: Classification(class_weights=[-1.0]), "class_weights"),
        (lambda: Classification(metrics={"accuracy": R2Score()}), "metrics.accuracy: is taken"),
        (lambda: Classification(metrics={"f1": F.mse_loss}), "metrics.f1: is a function, not one of torchmetrics"),
        (
            lambda: Classification(metrics={"a": MulticlassAUROC(num_classes=3)}),
            "cannot be added up over clients; give",
        ),
        (lambda: Regression(metrics={"rho": SpearmanCorrCoef()}), "metrics.rho: SpearmanCorrCoef's preds cannot be"),
        (lambda: Regression(loss="huber", delta=0.0), "delta=0.0"),
        (lambda: MultiLabel(gamma=-1.0), "gamma"),
        (lambda: Classification(auxiliary=-1.0), "auxiliary"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Task], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_metric_that_gives_several_numbers_is_refused() -> None:
    task = Classification(metrics={"f1": MulticlassF1Score(num_classes=CLASSES, average=None)})
    with pytest.raises(UserError, match=r"task.metrics.f1: gives several numbers"):
        task.scores(task.sums(drawn(COUNT, CLASSES), classes(COUNT)))


def test_focal_loss_by_hand() -> None:
    outputs, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 1]], dtype=torch.int8)
    p = outputs.sigmoid()
    expected = 0.25 * (1 - p) ** 2 * -p.log()
    losses = MultiLabel(loss="focal").losses(outputs, targets)
    torch.testing.assert_close(losses.sums, expected.sum(1))
    plain = MultiLabel(loss="focal", gamma=0.0, alpha=None).losses(outputs, targets)
    torch.testing.assert_close(plain.sums, MultiLabel().losses(outputs, targets).sums)


# Inputs and outputs


class Several(nn.Module):
    def forward(self, a: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"aux": a, "logits": a * mask, "count": mask.long()}


@pytest.mark.parametrize(
    "inputs", [(torch.ones(2, 3), torch.zeros(2, 3)), {"mask": torch.zeros(2, 3), "a": torch.ones(2, 3)}]
)
def test_a_model_gets_its_inputs_by_position_or_by_name(inputs: Any) -> None:
    answer, others = models.select(models.call(Several(), inputs), None)
    assert not answer.any()
    assert [other.tolist() for other in others] == [torch.ones(2, 3).tolist()]


@pytest.mark.parametrize(
    ("returned", "output", "answer", "others"),
    [
        (torch.ones(2), None, 1.0, 0),
        ((torch.ones(2), torch.zeros(2)), None, 1.0, 1),
        ((torch.zeros(2), torch.ones(2)), 1, 1.0, 1),
        ([torch.ones(2), None, 3], None, 1.0, 0),
        ({"out": torch.ones(2), "aux": torch.zeros(2)}, None, 1.0, 1),
        ({"first": torch.ones(2), "second": torch.zeros(2)}, None, 1.0, 1),
        ({"first": torch.zeros(2), "second": torch.ones(2)}, "second", 1.0, 1),
    ],
)
def test_the_answer_is_found_among_several_outputs(returned: Any, output: Any, answer: float, others: int) -> None:
    found, rest = models.select(returned, output)
    assert found.tolist() == [answer] * 2
    assert len(rest) == others


@pytest.mark.parametrize(("returned", "output"), [(None, None), ({}, None), ((torch.ones(1),), 3), ({"a": 1}, "a")])
def test_an_output_that_is_not_there_is_named(returned: Any, output: Any) -> None:
    with pytest.raises(UserError, match=r"^task.output="):
        models.select(returned, output)


def test_outputs_of_few_bits_are_taken_in_float32() -> None:
    answer, _ = models.select(torch.ones(2, dtype=torch.bfloat16), None)
    assert answer.dtype == torch.float32


def test_other_outputs_count_by_auxiliary() -> None:
    targets, first, second = classes(COUNT), drawn(COUNT, CLASSES), drawn(COUNT, CLASSES, key="second")
    losses = [Classification().losses(outputs, targets).mean() for outputs in (first, second)]
    for weight in (0.0, 0.3):
        task = Classification(auxiliary=weight)
        torch.testing.assert_close(task.train_losses((first, second), targets).mean(), losses[0] + weight * losses[1])
        torch.testing.assert_close(task.alone((first, second), targets).mean(), losses[0] + weight * losses[1])


# Targets as people have them


def data(y: Any, classes: int = 4, train: int = 80, rows: int = 100) -> Dataset:
    return Dataset("mine", Examples(torch.randn(rows, 6), y), train, classes)


@pytest.mark.parametrize("kind", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool])
def test_classes_of_any_integer_type_are_taken(kind: torch.dtype) -> None:
    y = torch.arange(100) % 2
    for given in (y.to(kind), y.to(kind).numpy()):
        fitted = Classification().fitted(data(given))
        assert fitted.pool.y.dtype == torch.int64
        assert fitted.pool.y.tolist() == y.tolist()
        assert fitted.labels is not None


Y = torch.arange(100) % 4


@pytest.mark.parametrize(
    ("task", "y", "line"),
    [
        (
            Classification(),
            Y + 1,
            r"mine's y is int64 from 1 to 4, of shape \[100\]; must be integers .* from 0 to 3, or",
        ),
        (Classification(), (Y % 2) * 2 - 1, "y is int64 from -1 to 1"),
        (Classification(), Y.float(), "y is float32 from 0 to 3"),
        (Classification(ignore_index=9), Y + 5, "or -100 or 9 for a target that does not count"),
        (Classification(), torch.eye(4)[Y], r"shape \[100, 4\]; .*; task=multilabel takes 0 or 1 for each"),
        (Classification(), torch.full((100,), -100), "no target of mine counts: each is -100$"),
        (Classification(ignore_index=9), torch.tensor([9, -100] * 50), "counts: each is -100 or 9"),
        (Segmentation(), torch.full((100, 3, 3), 255), "counts: each is -100 or 255"),
        (Segmentation(), Y, r"of shape \[100\]; this task needs a target for each pixel: \[100, ...\]"),
        (LanguageModel(), Y, r"of shape \[100\]; this task needs a target for each position"),
        (LanguageModel(), torch.ones(100, 3, 3), r"\[100, 3, 3\]; this task needs a target for each position"),
        (Classification(class_weights=[1, 2]), Y, "task.class_weights: 2, and mine has 4 classes"),
        (MultiLabel(), Y, r"must be 0, 1, or -100 .* of shape \[100, 4\]"),
        (MultiLabel(), torch.full((100, 4), 2), "y is int64 from 2 to 2"),
        (MultiLabel(), torch.ones(100, 3), r"of shape \[100, 3\]"),
        (Regression(), torch.full((100, 4), math.nan), "y is float32 from nan to nan"),
        (Regression(), torch.ones(100), r"must be finite numbers of shape \[100, 4\]"),
    ],
)
def test_other_targets_are_refused_in_a_line(task: Task, y: Tensor, line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        task.fitted(data(y))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "y", "kind"),
    [
        (Classification(), Y.where(Y > 0, -100), torch.int64),
        (MultiLabel(), torch.ones(100, 4), torch.int8),
        (MultiLabel(), torch.ones(100, 4, dtype=torch.bool), torch.int8),
        (Regression(), np.ones((100, 4)), torch.float64),
        (Regression(), np.ones((100, 4), np.float32), torch.float32),
        (Regression(), torch.ones(100, 4, dtype=torch.int32), torch.float64),
    ],
)
def test_targets_of_other_types_are_converted(task: Task, y: Any, kind: torch.dtype) -> None:
    assert task.fitted(data(y)).pool.y.dtype == kind


def test_examples_without_a_class_have_no_labels() -> None:
    assert data(Y).labels is not None
    assert data(Y.where(Y > 0, -100)).labels is None
    assert data(torch.ones(100)).labels is None
    assert data(torch.zeros(100, 2, dtype=torch.int64)).labels is None


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: Examples(torch.ones(90, 2), torch.ones(100)),
            r"x has 90 rows of float32 \[2\], and y 100 of float32 \[\]",
        ),
        (lambda: Examples((torch.ones(2), torch.ones(3)), torch.ones(2)), "x has 3 rows"),
        (lambda: Examples(np.array(["a", "b"]), torch.ones(2)), "cannot be made a tensor"),
        (lambda: data(Y[:0], rows=0), "data: mine: has no example"),
        (lambda: data(Y, train=500), "train_size is 500, and there are 100 examples in all; allowed is 1 to 100"),
        (lambda: data(Y, train=0), "train_size is 0"),
    ],
)
def test_lengths_and_types_are_named(make: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        make()


def test_numpy_arrays_become_tensors_of_the_types_that_models_take() -> None:
    big_endian = np.arange(6, dtype=">f4").reshape(3, 2)
    fixed = np.ones((3, 2))
    fixed.flags.writeable = False
    for x, kind in ((np.ones((3, 2)), torch.float32), (np.ones((3, 2), np.uint8), torch.uint8), (big_endian, None)):
        examples = Examples(x, [0, 1, 2])
        assert examples.single.dtype == (kind or torch.float32)
        assert examples.single.tolist() == x.tolist()
    assert Examples(fixed, np.arange(3)).single.tolist() == fixed.tolist()


@pytest.mark.parametrize("scale", [1, 255])
def test_only_bytes_are_divided_by_255(scale: int) -> None:
    shades = torch.tensor([0.0, 0.2, 1.0]).view(3, 1, 1, 1)
    x = shades if scale == 1 else (255 * shades).to(torch.uint8)
    batch, _ = Examples(x, torch.zeros(3), (0.5,), (0.25,)).batch(slice(None))
    torch.testing.assert_close(batch.flatten(), torch.tensor([-2.0, -1.2, 2.0]))  # type: ignore[union-attr]
