"""Image data sets: digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, as uint8 with their channels' mean and std.

MNIST: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998. Fashion-MNIST: Xiao et al., 2017,
arXiv:1708.07747. CIFAR: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Digits: Alpaydin and
Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part, as scikit-learn ships it).
"""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from fedshare.data.batches import read_batch
from fedshare.data.dataset import Dataset, Examples
from fedshare.data.files import find
from fedshare.data.idx import read_idx
from fedshare.data.sources import CIFAR10, CIFAR100, FASHION_MNIST, MNIST, Source
from fedshare.data.split import stratified
from fedshare.errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]  # uint8 [n, channels, height, width] and labels [n]


def digits() -> Dataset:
    """Return 1,797 digits, ``[1, 8, 8]``, 10 classes, without file or network; 80 % of each class is for training.

    Their 17 shades are scaled to 0..255 like other images, so that `Examples.batch` applies; the mapping is one-to-one.
    """
    # `sklearn.datasets.load_digits` reads the same file, but importing it takes each process of a run seconds.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    shades, labels = table[:, :-1], table[:, -1].astype(np.int64)
    images = np.rint(shades * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    train, test = stratified(labels, 0.2, "digits")
    # No published mean and deviation exist: these are computed from the training part.
    return images_of("digits", (images[train], labels[train]), (images[test], labels[test]), 10, (0.3057,), (0.3758,))


def mnist(root: str | Path | None = None) -> Dataset:
    """Return 60,000 and 10,000 digits, ``[1, 28, 28]``, 10 classes."""
    return idx_images("mnist", MNIST, root, (0.1307,), (0.3081,))


def fashion_mnist(root: str | Path | None = None) -> Dataset:
    """Return 60,000 and 10,000 pieces of clothing, ``[1, 28, 28]``, 10 classes."""
    return idx_images("fashion_mnist", FASHION_MNIST, root, (0.2860,), (0.3530,))


def cifar10(root: str | Path | None = None) -> Dataset:
    """Return 50,000 and 10,000 photos, ``[3, 32, 32]``, 10 classes."""
    files = find(CIFAR10, root)
    parts = [read_batch(files[f"data_batch_{number}"], "labels") for number in range(1, 6)]
    train = np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
    test = read_batch(files["test_batch"], "labels")
    return images_of("cifar10", train, test, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar100(root: str | Path | None = None, *, coarse: bool = False) -> Dataset:
    """Return 50,000 and 10,000 photos, ``[3, 32, 32]``, 100 classes; with `coarse`, their 20 superclasses."""
    files = find(CIFAR100, root)
    train, test = (read_batch(files[part], "coarse_labels" if coarse else "fine_labels") for part in ("train", "test"))
    classes = 20 if coarse else 100
    return images_of("cifar100", train, test, classes, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def idx_images(
    name: str, source: Source, root: str | Path | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    files = find(source, root)
    train, test = (
        (read_idx(files[f"{part}-images-idx3-ubyte"], 3)[:, None], read_idx(files[f"{part}-labels-idx1-ubyte"], 1))
        for part in ("train", "t10k")
    )
    return images_of(name, train, test, 10, mean, std)


def images_of(
    name: str, train: Arrays, test: Arrays, classes: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    for part, (images, labels) in {"training": train, "test": test}.items():
        if len(images) != len(labels) or not len(labels):
            raise UserError(f"{name}: the {part} files have {len(images)} images and {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(f"{name}: a {part} label is {labels.max()}, where labels are 0 to {classes - 1}")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise UserError(f"{name}: training images are {train[0].shape[1:]}, test images {test[0].shape[1:]}")
    x = torch.from_numpy(np.concatenate([train[0], test[0]]))
    y = torch.from_numpy(np.concatenate([train[1], test[1]]).astype(np.int64))
    return Dataset(name, Examples(x, y, mean, std), len(train[1]), classes)
