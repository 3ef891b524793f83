"""Published data sets, each loaded by a function. `fedshare.data.files` finds and downloads their files."""

from fedshare.data.characters import shakespeare
from fedshare.data.images import cifar10, cifar100, digits, fashion_mnist, mnist
from fedshare.data.sentiment import movie_review, sst2, sst_trees
from fedshare.data.speakers import shakespeare_tokens

__all__ = [
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "mnist",
    "movie_review",
    "shakespeare",
    "shakespeare_tokens",
    "sst2",
    "sst_trees",
]
