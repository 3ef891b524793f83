"""The digits, a small network, and how a client trains and tests it."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two layers for images of 8x8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 32)
        self.output = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(torch.relu(self.hidden(x)))
        return logits


def load(partition: int, partitions: int) -> tuple[TensorDataset, TensorDataset]:
    """Every `partitions`-th digit: four fifths of them to train on, the others to test on."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels[partition::partitions] / 16, dtype=torch.float32)
    y = torch.tensor(labels[partition::partitions])
    split = len(y) * 4 // 5
    return TensorDataset(x[:split], y[:split]), TensorDataset(x[split:], y[split:])


def train(net: Net, data: TensorDataset, epochs: int, batch_size: int, lr: float, seed: int) -> float:
    """Plain SGD; the mean loss of the last epoch."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    batches = DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for x, y in batches:
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
    return total / len(data)


def test(net: Net, data: TensorDataset) -> tuple[float, float]:
    """Mean loss, and accuracy in 0..1."""
    net.eval()
    x, y = data.tensors
    with torch.no_grad():
        logits = net(x)
    return cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
