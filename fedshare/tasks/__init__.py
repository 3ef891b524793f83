"""Tasks: batches, loss and metrics, defined once for training, attacks, privacy, probes and tests."""

from fedshare.tasks.classification import Classification, LanguageModel, Segmentation
from fedshare.tasks.losses import Losses
from fedshare.tasks.multilabel import MultiLabel
from fedshare.tasks.regression import Regression
from fedshare.tasks.task import Task

__all__ = ["Classification", "LanguageModel", "Losses", "MultiLabel", "Regression", "Segmentation", "Task"]
