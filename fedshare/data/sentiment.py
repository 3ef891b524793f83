"""Positive and negative sentences about films: SST-2, the SST's trees and Movie Review.

SST: Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank", EMNLP 2013.
SST-2 is its GLUE version: Wang et al., 2018, arXiv:1804.07461. Movie Review: Pang and Lee, "Seeing Stars", ACL 2005.

Tokens are words that occur at least `min_count` times in training, or those of a `tokenizer`, for a pretrained model.
With `words_of` the trees can use SST-2's vocabulary, for a model that learns one after the other: SST-2's training part
is phrases of the trees' training sentences, and its test part is the trees' development part, which no loader here
reads.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedshare.data.dataset import Dataset
from fedshare.data.files import find
from fedshare.data.sources import MOVIE_REVIEW, SST2, SST_TREES
from fedshare.data.split import stratified
from fedshare.data.text import UNKNOWN, Texts, build_vocabulary, classification, read_lines, words
from fedshare.data.tokenizer import Tokenizer
from fedshare.errors import UserError


class Words:
    """A tokenizer whose tokens are the words of `sentences`, numbered as in `classification`."""

    def __init__(self, sentences: Iterable[str], vocabulary: int, min_count: int) -> None:
        self.vocabulary = vocabulary
        self._known = build_vocabulary(map(words, sentences), vocabulary, min_count)

    def encode(self, text: str) -> list[int]:
        return [self._known.get(word, UNKNOWN) for word in words(text)]


def sst2(
    root: str | Path | None = None,
    *,
    vocabulary: int,
    length: int,
    min_count: int = 2,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """Return 67,349 phrases for training and 872 sentences for test, 2 classes, 1 is positive.

    GLUE does not publish the labels of its test part, so the published development part is the test.
    """
    files = find(SST2, root)
    train, test = read_tsv(files["train.tsv"]), read_tsv(files["dev.tsv"])
    texts = {"vocabulary": vocabulary, "length": length, "min_count": min_count}
    return classification("sst2", train, test, classes=2, **texts, tokenizer=tokenizer)


def sst_trees(
    root: str | Path | None = None,
    *,
    classes: int = 2,
    vocabulary: int,
    length: int,
    min_count: int = 2,
    words_of: str = "sst_trees",
    phrases: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """Return whole sentences with the label of their tree's root.

    5 classes (8,544 for training, 2,210 for test) from very negative to very positive; or 2 classes (6,920 and 1,821),
    negative and positive without the neutral sentences. The published development part is left out. The vocabulary is
    that of this training part, or of SST-2 with `words_of`. With `phrases`, training uses phrases instead, as in SST-2:
    each distinct constituent of a training tree of at most so many words, with its own label. The test is unchanged.
    """
    if classes not in (2, 5):
        raise UserError(f"sst_trees: classes is {classes}, it must be 2 or 5")
    if words_of not in ("sst_trees", "sst2"):
        raise UserError(f"sst_trees: words_of is {words_of}, it must be sst_trees or sst2")
    if phrases < 0:
        raise UserError(f"sst_trees: phrases is {phrases}, it must be at least 0")
    files, binary = find(SST_TREES, root), classes == 2
    train = read_trees(files["train.txt"], binary=binary, phrases=phrases)
    test = read_trees(files["test.txt"], binary=binary)
    if words_of == "sst2" and not tokenizer:
        tokenizer = Words(read_tsv(find(SST2, root)["train.tsv"])[0], vocabulary, min_count)
    texts = {"vocabulary": vocabulary, "length": length, "min_count": min_count}
    return classification("sst_trees", train, test, classes=classes, **texts, tokenizer=tokenizer)


def movie_review(
    root: str | Path | None = None,
    *,
    vocabulary: int,
    length: int,
    min_count: int = 2,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """Return 5,331 positive (1) and as many negative (0) sentences; 90 % of each for training, in a fixed split."""
    files = find(MOVIE_REVIEW, root)
    parts = {
        label: read_lines(files[f"rt-polarity.{kind}"], "windows-1252") for label, kind in ((0, "neg"), (1, "pos"))
    }
    sentences = np.array(parts[0] + parts[1], dtype=object)
    labels = np.repeat([0, 1], [len(parts[0]), len(parts[1])])
    train, test = (
        (sentences[rows].tolist(), labels[rows].tolist()) for rows in stratified(labels, 0.1, "movie_review")
    )
    texts = {"vocabulary": vocabulary, "length": length, "min_count": min_count}
    return classification("movie_review", train, test, classes=2, **texts, tokenizer=tokenizer)


def read_tsv(path: Path) -> Texts:
    lines = read_lines(path)
    if not lines or lines[0] != "sentence\tlabel":
        raise UserError(f"{path} must start with the line sentence<TAB>label")
    sentences, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        sentence, _, label = line.rpartition("\t")
        if not sentence or label not in ("0", "1"):
            raise UserError(f"{path} is damaged: line {number} must be a sentence, a tab and 0 or 1")
        sentences.append(sentence)
        labels.append(int(label))
    return sentences, labels


def read_trees(path: Path, *, binary: bool, phrases: int = 0) -> Texts:
    """Return whole sentences, or all distinct phrases of up to `phrases` words, each with the first label it has."""
    texts: list[tuple[str, int]] = []
    for number, line in enumerate(read_lines(path), start=1):
        tree = read_tree(line)
        if tree is None:
            raise UserError(f"{path} is damaged: line {number} is not one tree with labels 0 to 4")
        leaves, nodes = tree
        wanted = [node for node in nodes if node[1] - node[0] <= phrases] if phrases else nodes[-1:]
        texts += [(" ".join(leaves[first:end]), label) for first, end, label in wanted]
    if phrases:
        labels: dict[str, int] = {}
        for text, label in texts:
            labels.setdefault(text, label)
        texts = list(labels.items())
    if binary:
        texts = [(text, int(label > 2)) for text, label in texts if label != 2]
    return [text for text, _ in texts], [label for _, label in texts]


NODE = re.compile(r" *\(([0-4]) (?:([^() ]+)\))?| *(\))")  # opens a node, with its word if it is a leaf; or closes one


def read_tree(line: str) -> tuple[list[str], list[tuple[int, int, int]]] | None:
    """Return the words of ``(3 (2 Good) (2 fun))`` and each node's first word, end and label; the root is last.

    None if the line is not exactly one tree.
    """
    leaves: list[str] = []
    nodes: list[tuple[int, int, int]] = []
    begun: list[tuple[int, int]] = []  # first word and label of each open node
    at = 0
    while node := NODE.match(line, at):
        label, word, closed = node.groups()
        at = node.end()
        if not closed:
            begun.append((len(leaves), int(label)))
        if word:
            leaves.append(word)
        if word or closed:
            if not begun or begun[-1][0] == len(leaves):  # closed more often than opened; or an empty node
                return None
            first, value = begun.pop()
            nodes.append((first, len(leaves), value))
        if not begun:
            break
    return (leaves, nodes) if nodes and not begun and not line[at:].strip() else None
