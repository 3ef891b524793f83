"""The data sets: small files in each published layout, and the published ones themselves where they are at hand."""

import gzip
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sklearn.datasets import load_digits

from fedshare import data
from fedshare.data import files, sources, text
from fedshare.data.dataset import Dataset
from fedshare.data.sentiment import read_tree
from fedshare.data.split import stratified
from fedshare.errors import UserError

CONF = Path(__file__).parents[1] / "experiments" / "conf" / "data"
NAMES = sorted(set(data.__all__) - {"shakespeare_tokens"})  # that one is in test_tokenizer.py
TABLE = {
    "mnist": sources.MNIST,
    "fashion_mnist": sources.FASHION_MNIST,
    "cifar10": sources.CIFAR10,
    "cifar100": sources.CIFAR100,
    "sst2": sources.SST2,
    "sst_trees": sources.SST_TREES,
    "movie_review": sources.MOVIE_REVIEW,
    "shakespeare": sources.TINY_SHAKESPEARE,
}
SIZES = {  # training and test examples
    "digits": (1442, 355),
    "mnist": (60000, 10000),
    "fashion_mnist": (60000, 10000),
    "cifar10": (50000, 10000),
    "cifar100": (50000, 10000),
    "sst2": (67349, 872),
    "sst_trees": (6920, 1821),
    "movie_review": (9596, 1066),
    "shakespeare": (10485, 2625),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSHARE_MIRROR", "http://127.0.0.1:1")
    files.warn_once.cache_clear()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def config(name: str) -> DictConfig:
    return OmegaConf.create({"data": OmegaConf.load(CONF / f"{name}.yaml")}).data


def published(name: str) -> None:
    """Skip where the files of this data set are not in $FEDSHARE_DATA."""
    if source := TABLE.get(name):
        root = os.environ.get("FEDSHARE_DATA")
        folders = [Path(root) / folder for folder in (source.folder, source.inside) if folder] if root else []
        if not any(len(files.present(source, folder)) == len(source.names) for folder in folders):
            pytest.skip(f"set FEDSHARE_DATA to the folder that has {source.folder}")


def balanced(dataset: Dataset) -> bool:
    """Training and test have equal shares of each class, up to one example."""
    labels = dataset.pool.y
    train, test = (part.bincount() for part in (labels[: dataset.train_size], labels[dataset.train_size :]))
    share = len(labels) / (len(labels) - dataset.train_size)
    return bool(((train + test - test * share).abs() <= share).all())


# The published data


@pytest.mark.parametrize("name", NAMES)
def test_published_data_are_what_their_yaml_says(name: str) -> None:
    published(name)
    conf = config(name)
    dataset = instantiate(conf.load)
    x, y = dataset.pool.x, dataset.pool.y
    assert (dataset.name, dataset.classes, list(dataset.shape)) == (name, conf.classes, list(conf.shape))
    assert (dataset.train_size, len(x) - dataset.train_size) == SIZES[name]
    assert len(x) == len(y)
    assert y.dtype == torch.int64
    assert x.dtype == (torch.int64 if "vocabulary" in conf else torch.uint8)
    labels = y[y != -100]
    assert labels.min() == ("vocabulary" in conf and conf.classes == conf.vocabulary)  # nothing is padding's target
    assert labels.max() == conf.classes - 1
    if "vocabulary" in conf:
        assert x.max() == conf.vocabulary - 1  # no row of the embedding is without a word
    if dataset.pool.mean:
        seen = dataset.pool.batch(slice(0, dataset.train_size, 10))[0].transpose(0, 1).flatten(1)
        assert seen.mean(1).abs().max() < 0.03
        assert (seen.std(1) - 1).abs().max() < 0.03


def test_published_cifar100_has_coarse_classes() -> None:
    published("cifar100")
    assert data.cifar100(coarse=True).pool.y.bincount().tolist() == [3000] * 20


def test_published_sst_has_five_classes() -> None:
    published("sst_trees")
    dataset = data.sst_trees(classes=5, vocabulary=9000, length=60)
    assert (dataset.train_size, len(dataset.pool)) == (8544, 8544 + 2210)
    assert dataset.pool.y[: dataset.train_size].bincount().tolist() == [1092, 2218, 1624, 2322, 1288]


def test_published_shakespeare_is_read_whole() -> None:
    published("shakespeare")
    dataset = data.shakespeare(length=80)
    assert dataset.owner is not None
    train, test = dataset.owner[: dataset.train_size], dataset.owner[dataset.train_size :]
    assert set(train) == set(range(299))
    assert set(test) < set(train)
    characters = (dataset.pool.y != -100).sum(1)
    assert 0.78 < characters[: dataset.train_size].sum() / characters.sum() < 0.84


# Images


def test_a_split_is_for_good() -> None:
    train, test = stratified(np.repeat([0, 1], [10, 14]), 0.2, "digits")
    assert test.tolist() == [8, 9, 17, 18]  # written down once: no other release may hold out other examples
    assert sorted([*train, *test]) == list(range(24))


def test_digits_are_split_by_class_the_same_way_every_time() -> None:
    first, second = data.digits(), data.digits()
    assert torch.equal(first.pool.x, second.pool.x)
    assert balanced(first)
    shades = np.rint(first.pool.x.flatten(1).numpy() * (16 / 255)).astype(int).tolist()
    assert sorted(shades) == sorted(load_digits().data.astype(int).tolist())


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_mnist(root: Path, folder: str = "MNIST/raw", suffix: str = "") -> tuple[np.ndarray, np.ndarray]:
    images = np.arange(7 * 28 * 28, dtype=np.uint8).reshape(7, 28, 28)
    labels = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)
    for part, rows in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array[rows])
            write(root / folder / f"{part}-{kind}-ubyte{suffix}", gzip.compress(content) if suffix else content)
    return images, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")])
def test_idx_files_packed_or_not(name: str, folder: str, suffix: str, tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path, folder, suffix)
    dataset = getattr(data, name)(tmp_path)
    assert np.array_equal(dataset.pool.x, images[:, None])
    assert dataset.pool.y.tolist() == labels.tolist()
    assert (dataset.train_size, dataset.classes, dataset.shape) == (5, 10, (1, 28, 28))


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("train-images-idx3-ubyte", lambda content: content[:-1], "is damaged: 3935 bytes, .* 3936"),
        ("train-images-idx3-ubyte", lambda content: content + b"?", "is damaged"),
        ("train-images-idx3-ubyte", lambda content: content[:7], "is not an idx file"),
        ("train-labels-idx1-ubyte", lambda content: b"<html>" + content, "is not an idx file"),
        ("train-labels-idx1-ubyte", lambda content: b"", "is not an idx file"),
        ("train-labels-idx1-ubyte", lambda content: idx(np.zeros(4, np.uint8)), "5 images and 4 labels"),
        ("t10k-labels-idx1-ubyte", lambda content: idx(np.full(2, 10, np.uint8)), "label is 10"),
        ("train-images-idx3-ubyte", lambda content: idx(np.zeros((5, 8, 8), np.uint8)), "images are .1, 8, 8."),
    ],
)
def test_damaged_idx_files(name: str, damage: object, said: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw" / name
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UserError, match=said):
        data.mnist(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not gzip", gzip.compress(b"x" * 999)[:-9]], ids=["empty", "other", "cut"])
def test_damaged_packed_files(content: bytes, tmp_path: Path) -> None:
    write_mnist(tmp_path, suffix=".gz")
    write(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz", content)
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz"):
        data.mnist(tmp_path)


def test_other_files_than_the_published_give_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_mnist(tmp_path)
    with caplog.at_level(logging.WARNING):
        data.mnist(tmp_path)
        data.mnist(tmp_path)
    (record,) = caplog.records
    assert "t10k-labels-idx1-ubyte" in record.message
    assert "\n" not in record.message


def test_the_argument_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path / "variable"))
    write_mnist(tmp_path / "argument")
    with pytest.raises(UserError, match=f"put train-images-idx3-ubyte, .* into {tmp_path}/variable/MNIST/raw: "):
        data.mnist()
    assert len(data.mnist(tmp_path / "argument").pool) == 7
    write_mnist(tmp_path / "variable")
    assert len(data.mnist().pool) == 7


# CIFAR, in the bytes that Python 2 wrote


def string(content: bytes) -> bytes:
    return b"T" + len(content).to_bytes(4, "little") + content


def python2_array(array: np.ndarray) -> bytes:
    shape = b"".join(b"J" + size.to_bytes(4, "little") for size in array.shape)
    dtype = (
        b"cnumpy\ndtype\n("
        + string(b"u1")
        + b"K\0K\1tR(K\3"
        + string(b"|")
        + b"NNN"
        + b"J\xff\xff\xff\xff" * 2
        + b"K\0tb"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + string(b"b") + b"tR"
    return empty + b"(K\1(" + shape + b"t" + dtype + b"\x89" + string(array.tobytes()) + b"tb"


def python2_batch(images: np.ndarray, **labels: list[int]) -> bytes:
    lists = (
        string(name.encode()) + b"](" + b"".join(b"K%c" % label for label in own) + b"e" for name, own in labels.items()
    )
    return b"\x80\x02}(" + string(b"data") + python2_array(images) + b"".join(lists) + b"u."


PHOTOS = np.random.default_rng(0).integers(0, 256, (12, 3072), np.uint8)


def write_cifar10(root: Path) -> None:
    for number in range(6):
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        batch = python2_batch(PHOTOS[2 * number : 2 * number + 2], labels=[number, 9 - number])
        write(root / "cifar-10-batches-py" / name, batch)


def test_cifar10(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    dataset = data.cifar10(tmp_path)
    assert np.array_equal(dataset.pool.x, PHOTOS.reshape(-1, 3, 32, 32))
    assert dataset.pool.y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5, 5, 4]
    assert (dataset.train_size, dataset.classes) == (10, 10)


def test_cifar100(tmp_path: Path) -> None:
    for name, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        fine, coarse = list(range(90, 102))[rows][::-1], list(range(12))[rows]
        batch = python2_batch(PHOTOS[rows], fine_labels=[min(label, 99) for label in fine], coarse_labels=coarse)
        write(tmp_path / "cifar-100-python" / name, batch)
    assert data.cifar100(tmp_path).pool.y.tolist() == [97, 96, 95, 94, 93, 92, 91, 90, 99, 99, 99, 98]
    coarse_set = data.cifar100(tmp_path, coarse=True)
    assert (coarse_set.pool.y.tolist(), coarse_set.classes) == (list(range(12)), 20)


def test_a_pickle_cannot_run_anything(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    made = tmp_path / "made"
    calls = {
        "builtins.open": f"cbuiltins\nopen\n(S'{made}'\nS'w'\ntR.",
        "posix.system": f"cposix\nsystem\n(S'touch {made}'\ntR.",
        "numpy.fromfile": f"cnumpy\nfromfile\n(S'{made}'\ntR.",
        "numpy.core.multiarray.fromfile": f"cnumpy.core.multiarray\nfromfile\n(S'{made}'\ntR.",
        "builtins.getattr": "\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
    }
    for name, content in calls.items():
        path = write(tmp_path / "cifar-10-batches-py/data_batch_3", content.encode("latin-1"))
        with pytest.raises(UserError, match=f"{path} is refused: it asks for {name}"):
            data.cifar10(tmp_path)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged"),
        (b"<html>404</html>", "is damaged"),
        (python2_batch(PHOTOS, labels=[0] * 12)[:-40], "is damaged"),
        (b"\x80\x02K\1.", "data must be uint8"),
        (python2_batch(PHOTOS[:, :-1], labels=[0] * 12), "data must be uint8"),
        (python2_batch(PHOTOS, labels=[0] * 11), "labels must be 12 integers"),
        (python2_batch(PHOTOS, fine_labels=[0] * 12), "labels must be 12 integers"),
        (python2_batch(PHOTOS, labels=[10] * 12), "label is 10"),
    ],
)
def test_damaged_batches(content: bytes, said: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    write(tmp_path / "cifar-10-batches-py/test_batch", content)
    with pytest.raises(UserError, match=said) as error:
        data.cifar10(tmp_path)
    assert "\n" not in str(error.value)


# Text


def test_the_vocabulary_is_the_most_frequent_training_words(tmp_path: Path) -> None:
    write(tmp_path / "sst2-glue/train.tsv", "sentence\tlabel\nb a b d \t1\nA b c\t0\n")
    write(tmp_path / "sst2-glue/dev.tsv", "sentence\tlabel\nd b e a b c\t1\n")
    dataset = data.sst2(tmp_path, vocabulary=5, length=4, min_count=1)
    # Padding is 0, unknown 1, then b (3 times), a (twice), c (before d in the alphabet); d and e have no place.
    assert dataset.pool.x.tolist() == [[2, 3, 2, 1], [3, 2, 4, 0], [1, 2, 1, 3]]
    assert dataset.pool.y.tolist() == [1, 0, 1]
    assert dataset.train_size == 2
    assert data.sst2(tmp_path, vocabulary=5, length=4, min_count=2).pool.x.max() == 3


@pytest.mark.parametrize("folder", ["sst2-glue", "SST-2"])
def test_sst2_in_both_folders(folder: str, tmp_path: Path) -> None:
    for part in ("train", "dev"):
        write(tmp_path / folder / f"{part}.tsv", "sentence\tlabel\r\ngood\t1\r\n")
    assert len(data.sst2(tmp_path, vocabulary=9, length=2).pool) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must start with"),
        ("index\tsentence\n0\tgood\n", "must start with"),
        ("sentence\tlabel\ngood\t1\nbad\n", "line 3"),
        ("sentence\tlabel\ngood\t2\n", "line 2"),
        ("sentence\tlabel\n", "0 training"),
        (b"sentence\tlabel\n\xff\t1\n", "is not utf-8 text: .* at byte 15"),
    ],
)
def test_damaged_tsv(content: bytes | str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "SST-2/train.tsv", content)
    write(tmp_path / "SST-2/dev.tsv", "sentence\tlabel\ngood\t1\n")
    with pytest.raises(UserError, match=said):
        data.sst2(tmp_path, vocabulary=9, length=2)


@pytest.mark.parametrize(("argument", "value"), [("vocabulary", 2), ("length", 0), ("min_count", 0)])
def test_arguments_that_make_no_text(argument: str, value: int, tmp_path: Path) -> None:
    for part in ("train", "dev"):
        write(tmp_path / f"SST-2/{part}.tsv", "sentence\tlabel\ngood\t1\n")
    with pytest.raises(UserError, match=f"{argument} is {value}, it must be at least"):
        data.sst2(tmp_path, **{"vocabulary": 9, "length": 2} | {argument: value})


@pytest.mark.parametrize("folder", ["sst-trees", "trees"])
def test_sst_trees(folder: str, tmp_path: Path) -> None:
    trees = "(4 (2 Good) (3 fun))\n(2 (2 so) (2 what))\n(1 (2 (2 not) (2 so)) (3 good))\n(0 bad)\n"
    for part in ("train", "test"):
        write(tmp_path / folder / f"{part}.txt", trees)
    two = data.sst_trees(tmp_path, vocabulary=4, length=3)
    assert two.pool.y.tolist() == [1, 0, 0] * 2
    assert two.pool.x[:3].tolist() == [[2, 1, 0], [1, 1, 2], [1, 0, 0]]  # neutral sentences give no words either
    five = data.sst_trees(tmp_path, classes=5, vocabulary=9, length=3)
    assert five.pool.y.tolist() == [4, 2, 1, 0] * 2
    with pytest.raises(UserError, match="classes is 3, it must be 2 or 5"):
        data.sst_trees(tmp_path, classes=3, vocabulary=9, length=3)


def test_phrases_of_trees_are_there_once_each_with_its_label(tmp_path: Path) -> None:
    trees = "(4 (2 very) (3 (3 good) (2 fun)))\n(0 (1 (2 not) (3 good)) (2 (2 very) (2 so)))\n(1 good)\n"
    for part in ("train", "test"):
        write(tmp_path / "trees" / f"{part}.txt", trees)
    settings = {"vocabulary": 9, "length": 4, "min_count": 1}
    short = data.sst_trees(tmp_path, classes=5, phrases=2, **settings)
    # very, good, fun, good fun, not, not good, so, very so: words by frequency, then by alphabet.
    good, fun, no, so, very = 2, 3, 4, 5, 6
    phrases = [[very], [good], [fun], [good, fun], [no], [no, good], [so], [very, so]]
    assert short.pool.x[: short.train_size].tolist() == [phrase + [0] * (4 - len(phrase)) for phrase in phrases]
    assert short.pool.y.tolist() == [2, 3, 2, 3, 2, 1, 2, 2, 4, 0, 1]  # the test: three sentences
    all_ = data.sst_trees(tmp_path, classes=5, phrases=4, **settings)
    assert all_.train_size == len(phrases) + 2
    two = data.sst_trees(tmp_path, phrases=2, **settings)
    assert two.pool.y.tolist() == [1, 1, 0, 1, 0, 0]
    with pytest.raises(UserError, match="phrases is -1, it must be at least 0"):
        data.sst_trees(tmp_path, phrases=-1, **settings)


def test_trees_in_the_words_of_sst2(tmp_path: Path) -> None:
    write(tmp_path / "sst2-glue/train.tsv", "sentence\tlabel\nb a b d \t1\nA b c\t0\n")
    write(tmp_path / "sst2-glue/dev.tsv", "sentence\tlabel\nd b e a b c\t1\n")
    for part in ("train", "test"):
        write(tmp_path / f"trees/{part}.txt", "(4 (2 E) (3 (2 e) (2 B)))\n(0 (2 c) (1 (2 d) (2 a)))\n")
    settings = {"vocabulary": 5, "length": 4, "min_count": 1}
    trees = data.sst_trees(tmp_path, words_of="sst2", **settings)
    # As SST-2 has them: b, a and c are 2, 3 and 4, and all else is unknown.
    assert trees.pool.x.tolist() == [[1, 1, 2, 0], [4, 1, 3, 0]] * 2
    # The trees' own e comes first, then the first of the alphabet.
    assert data.sst_trees(tmp_path, **settings).pool.x.tolist() == [[2, 2, 4, 0], [1, 1, 3, 0]] * 2
    with pytest.raises(UserError, match="vocabulary is 2, it must be at least 3"):
        data.sst_trees(tmp_path, words_of="sst2", vocabulary=2, length=4)
    with pytest.raises(UserError, match="words_of is dev, it must be sst_trees or sst2"):
        data.sst_trees(tmp_path, words_of="dev", **settings)


def test_sst2_tests_on_what_the_trees_never_show() -> None:
    published("sst_trees")
    published("sst2")
    settings = {"vocabulary": 20000, "length": 60, "min_count": 1}
    sst2 = data.sst2(**settings)
    test = {tuple(row) for row in sst2.pool.x[sst2.train_size :].tolist()}
    for phrases in (0, 2):
        trees = data.sst_trees(classes=5, words_of="sst2", phrases=phrases, **settings)
        shown = {tuple(row) for row in trees.pool.x.tolist()}
        assert not test & shown


def test_a_deep_tree_needs_no_stack() -> None:
    deep = "(3 " * 100_000 + "(2 deep)" + ")" * 100_000
    tree = read_tree(deep)
    assert tree
    leaves, nodes = tree
    assert leaves == ["deep"]
    assert nodes == [(0, 1, 2)] + [(0, 1, 3)] * 100_000


@pytest.mark.parametrize(
    "line",
    [
        "",
        "good",
        "(3 good",
        "(3 (2 good)",
        "(3 good))",
        "(5 good)",
        "(3)",
        "(3 good) (2 bad)",
        "(3 (2 a) b)",
        "()",
        "(3 (2 ) (2 a))",
    ],
)
def test_damaged_trees(line: str, tmp_path: Path) -> None:
    assert read_tree(line) is None
    for part in ("train", "test"):
        write(tmp_path / f"trees/{part}.txt", f"(3 good)\n{line or '()'}\n")
    with pytest.raises(UserError, match=r"train.txt is damaged: line 2"):
        data.sst_trees(tmp_path, vocabulary=9, length=3)


def test_movie_review_is_split_by_class_the_same_way_every_time(tmp_path: Path) -> None:
    for kind in ("pos", "neg"):
        lines = [f"{kind}{number} cliché … café" for number in range(40)]
        write(tmp_path / "mr-rt-polarity" / f"rt-polarity.{kind}", "\n".join(lines).encode("cp1252"))
    first, second = (data.movie_review(tmp_path, vocabulary=200, length=5, min_count=1) for _ in range(2))
    assert torch.equal(first.pool.x, second.pool.x)
    assert (first.train_size, len(first.pool)) == (72, 80)
    assert balanced(first)
    assert (first.pool.x[:, 1:4] == first.pool.x[0, 1:4]).all()  # one word is one token, whatever its letters


def test_text_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not windows-1252 text"):
        text.read_lines(write(tmp_path / "text", b"caf\x81"), "windows-1252")


# Tiny Shakespeare

PLAY = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.


First Citizen:
You are all resolved:
rather to die?

Ghost:

First Citizen:
One.
Two.
"""


def spoken(dataset: Dataset, rows: torch.Tensor) -> str:
    """Inputs and targets of these rows, put together again."""
    letters = {token: chr(byte) for byte, token in enumerate(data.characters.TOKENS.tolist()) if token}
    x, y = dataset.pool.x[rows], dataset.pool.y[rows]
    kept = y != -100
    assert (x[~kept] == 0).all()
    assert torch.equal(x.flatten()[1:][kept.flatten()[1:]], y.flatten()[:-1][kept.flatten()[1:]])
    return letters[int(x[0, 0])] + "".join(letters[token] for token in y[kept].tolist())


def test_shakespeare_gives_each_speaker_their_own_lines(tmp_path: Path) -> None:
    write(tmp_path / "tiny-shakespeare/input.txt", PLAY)
    dataset = data.shakespeare(tmp_path, length=7)
    assert dataset.owner is not None
    owner, train = torch.from_numpy(dataset.owner), torch.arange(len(dataset.pool)) < dataset.train_size
    first = "Before we proceed any further, hear me speak.\nYou are all resolved:\nrather to die?\nOne.\n"
    assert spoken(dataset, train & (owner == 0)) == first
    assert spoken(dataset, ~train & (owner == 0)) == "Two.\n"
    assert spoken(dataset, train & (owner == 1)) == "Speak, speak.\n"
    assert int((~train & (owner == 1)).sum()) == 0  # of one line nothing is held out
    assert (dataset.classes, dataset.shape, dataset.labels) == (66, (7,), None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "nobody speaks"),
        ("All:\nSpeak\n\nno name\nspeak\n", "a speech begins with 'no name'"),
        ("All:\nCaf\u00e9\n", "it has the byte 0xa9"),
    ],
)
def test_damaged_shakespeare(content: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "tiny-shakespeare/input.txt", content)
    with pytest.raises(UserError, match=said):
        data.shakespeare(tmp_path, length=7)


@pytest.mark.parametrize(
    ("arguments", "said"), [({"vocabulary": 65, "length": 7}, "must be 66"), ({"length": 0}, "least 1")]
)
def test_shakespeare_has_one_alphabet(arguments: dict[str, int], said: str, tmp_path: Path) -> None:
    write(tmp_path / "tiny-shakespeare/input.txt", PLAY)
    with pytest.raises(UserError, match=said):
        data.shakespeare(tmp_path, **arguments)


def test_every_data_set_has_its_yaml() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} >= set(NAMES)
    for name in NAMES:
        assert config(name).load["_target_"] == f"fedshare.data.{name}"
        assert config(name).clients > 0
