"""What a researcher brings: data sets, a model or two, a loss. Every item here is named in the YAML files beside it."""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional as F

from fedshare.data.dataset import Dataset, Examples

WORDS = 40


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patients() -> Dataset:
    """A regression: how far a disease has gone, by 10 measurements."""
    x, y = load_diabetes(return_X_y=True)
    return Dataset("patients", Examples((x * 20).astype("float32"), (y / 100).astype("float32")), 353, classes=1)


def scenes() -> Dataset:
    """Three labels, each there or not."""
    x = _noise(1, 400, 12)
    return Dataset("scenes", Examples(x, (x @ _noise(2, 12, 3) > 0.5).to(torch.uint8)), 300, classes=3)


def fields() -> Dataset:
    """Images whose pixels are to be told apart; the border of each does not count."""
    x = _noise(3, 160, 3, 8, 8)
    y = (x[:, 0] > 0.3).long() + (x[:, 1] > 0.6).long()
    y[:, 0], y[:, :, 0] = 255, 255
    return Dataset("fields", Examples(x, y), 120, classes=3)


def reviews() -> Dataset:
    """Padded texts with a mask, as dicts of tensors; the first half of the vocabulary is praise."""
    tokens = torch.randint(1, WORDS, (400, 9), generator=torch.Generator().manual_seed(4))
    lengths = torch.randint(3, 10, (400, 1), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(9) < lengths).long()
    praise = ((tokens < WORDS // 2) * mask).sum(1) * 2 > lengths[:, 0]
    return Dataset("reviews", Examples({"input_ids": tokens * mask, "attention_mask": mask}, praise), 300, classes=2)


class Pixels(nn.Module):
    """A dict of outputs, one of them for training only."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head, self.side = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = F.relu(self.body(x))
        return {"out": self.head(features), "aux": self.side(features)}


class Reader(nn.Module):
    """The mean of the embeddings that the mask does not hide."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        shown = attention_mask.unsqueeze(-1).to(self.head.weight.dtype)
        return self.head((self.embedding(input_ids) * shown).sum(1) / shown.sum(1))


def cautious(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss for each example: cross-entropy, and a charge on certainty."""
    return F.cross_entropy(outputs, targets, reduction="none") + 0.1 * outputs.softmax(1).square().sum(1)
