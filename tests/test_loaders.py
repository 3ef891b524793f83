"""Data as people have them: torch Datasets read lazily, tables, LEAF, PFLlib, Hugging Face folders."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import world
from fedshare import seeds
from fedshare.client import Training
from fedshare.data.dataset import Examples
from fedshare.data.from_torch import torch_dataset
from fedshare.data.hugging_face import hf_folder
from fedshare.data.leaf import leaf
from fedshare.data.npz import pfllib
from fedshare.data.partition import Dirichlet, Iid, Natural
from fedshare.data.tables import table
from fedshare.errors import UserError
from fedshare.models import MLP
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Partitioned, Population, Simulation
from fedshare.strategies.fedavg import FedAvg
from fedshare.tasks import Classification, MultiLabel, Regression, Segmentation, Task
from fedshare.training.scratch import Scratch
from optional import extra


class Images:
    """Items that are made when asked for, and note it; `jitter` draws from all three generators."""

    def __init__(self, count: int = 60, jitter: bool = False, targets: bool = True) -> None:
        self.count, self.jitter, self.asked = count, jitter, list[int]()
        if targets:
            self.targets = [row % 3 for row in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if not 0 <= row < self.count:
            raise IndexError(row)
        self.asked.append(row)
        x = torch.full((1, 4, 4), float(row % 3))
        if self.jitter:
            x += torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return x, row % 3


def test_a_torch_dataset_is_read_when_a_batch_asks_for_it() -> None:
    source = Images()
    dataset = torch_dataset(source, test_share=0.25)
    assert (len(dataset.pool), dataset.train_size, dataset.classes, dataset.shape) == (60, 45, 3, (1, 4, 4))
    assert source.asked == [0]  # for the shape
    source.asked.clear()
    parts = Partitioned(dataset, Dirichlet(clients=4, alpha=1.0), 0)
    assert source.asked == []
    x, y = parts[1].train.batch(torch.tensor([0, 2]))
    assert len(source.asked) == 2
    assert isinstance(x, Tensor)
    assert x[:, 0, 0, 0].tolist() == y.tolist()
    assert dataset.labels is not None
    assert [dataset.labels[row] for row in parts.split.train[1][[0, 2]]] == y.tolist()


def run(task: Task, dataset: Any, workers: int = 0, classes: int | None = None) -> list[dict[str, Any]]:
    """Two rounds of FedAvg on it."""
    fitted = task.fitted(dataset)

    def build() -> Population:
        with seeds.scope("loaders"):
            model = MLP(fitted.shape, classes or fitted.classes, hidden=(8,))
        shares = Partitioned(fitted, Iid(clients=3), 0)
        return Population(FedAvg(), Scratch(model), Training(optimizer=world.sgd, batch_size=8), shares, 0, task=task)

    with Simulation(build, workers) as network:
        state = world.begin(network.population)
        done = run_server(FedAvg(), network, state, Schedule(rounds=2, seed=0), task=task)
        return [each.row for each in done]


def test_lazy_and_cached_are_the_same_to_the_bit_where_nothing_is_drawn() -> None:
    lazy, cached = (run(Classification(), torch_dataset(Images(), cache=cache)) for cache in (False, True))
    assert [row["digest"] for row in lazy] == [row["digest"] for row in cached]
    assert lazy[-1]["loss"] < lazy[0]["loss"]


def test_what_transforms_draw_follows_from_the_client_and_the_round() -> None:
    first, second = (run(Classification(), torch_dataset(Images(jitter=True))) for _ in range(2))
    random.seed(99)  # whatever others have done with the generators
    torch.manual_seed(99)
    third = run(Classification(), torch_dataset(Images(jitter=True)))
    plain = run(Classification(), torch_dataset(Images()))
    digests = [[row["digest"] for row in rows] for rows in (first, second, third, plain)]
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_reading_leaves_the_generators_as_they_were() -> None:
    dataset = torch_dataset(Images(jitter=True))
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    dataset.pool.batch(slice(0, 3))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (lambda: Images(6), [0, 1, 2, 0, 1, 2]),
        (lambda: Subset(Images(9), [8, 1, 0]), [2, 1, 0]),  # type: ignore[arg-type]
        (lambda: ConcatDataset([Images(3), Subset(Images(9), [5])]), [0, 1, 2, 2]),  # type: ignore[list-item]
        (lambda: Images(6, targets=False), None),
        (lambda: TensorDataset(torch.ones(4, 2), torch.zeros(4)), None),
    ],
)
def test_where_the_classes_of_items_are_found(make: Callable[[], Any], labels: list[int] | None) -> None:
    dataset = torch_dataset(make(), make(), classes=3)
    assert (None if dataset.labels is None else dataset.labels.tolist()) == (None if labels is None else labels * 2)
    if labels is None:
        with pytest.raises(UserError, match="partition needs a class for each example"):
            Dirichlet(clients=2).split(dataset, 0)


def test_classes_can_be_read_from_the_items() -> None:
    source = Images(6, targets=False)
    assert torch_dataset(source, source, labels="read").labels.tolist() == [0, 1, 2, 0, 1, 2] * 2  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"data\.load\.labels=read: a target is no class"):
        torch_dataset(TensorDataset(torch.ones(4, 2), torch.zeros(4)), labels="read")


class Odd(Images):
    def __init__(self, item: Callable[[int], Any]) -> None:
        super().__init__(10)
        self.item = item

    def __getitem__(self, row: int) -> Any:
        return self.item(row)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: torch_dataset(None), r"data\.load\.train: is required"),
        (lambda: torch_dataset(iter([1])), r"data\.load\.train: a list_iterator has no length and no items"),
        (lambda: torch_dataset(Images(0)), r"data\.load\.train: torch has no example"),
        (lambda: torch_dataset(Images(targets=False)), r"data\.classes: is required"),
        (lambda: torch_dataset(Images(), test_share=1.0), r"data\.load\.test_share=1\.0"),
        (lambda: torch_dataset(Images(4)), "of 4 examples 0 are left for test"),
        (lambda: torch_dataset(Images(), labels="guess"), r"data\.load\.labels=guess"),  # type: ignore[arg-type]
        (
            lambda: torch_dataset(Odd(lambda row: 3), classes=3).shape,
            r"item \d: an item is a int; must be a",
        ),
        (
            lambda: torch_dataset(Odd(lambda row: ("a", 1)), classes=3).shape,
            r"item \d: .* cannot be made a tensor",
        ),
        (
            lambda: torch_dataset(Odd(lambda row: (torch.ones(row + 1), 0)), Images(4), classes=3).pool.batch(
                slice(0, 3)
            ),
            r"data: item 1 has shape \[2\], others \[1\]: a transform must resize",
        ),
        (lambda: torch_dataset(Images()).pool.x, r"data\.load\.cache=true keeps them"),
        (lambda: Classification().fitted(torch_dataset(Images(), classes=2)), "y is int64 from 0 to 2"),
    ],
)
def test_what_is_no_dataset_is_refused_in_a_line(make: Callable[[], Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        make()
    assert "\n" not in str(error.value)


def test_targets_are_converted_as_they_are_read() -> None:
    def masks(row: int) -> Any:
        return torch.full((3, 4, 4), 0.5), np.full((4, 4), row % 3, np.uint8)

    _, y = Segmentation().fitted(torch_dataset(Odd(masks), classes=3, labels="none")).pool.batch(slice(None))
    assert (y.dtype, list(y.shape)) == (torch.int64, [10, 4, 4])
    flags = torch_dataset(Odd(lambda row: (1.0, [True, False])), classes=2, labels="none")
    _, y = MultiLabel().fitted(flags).pool.batch(slice(0, 2))
    assert y.tolist() == [[1, 0], [1, 0]]
    dataset = torch_dataset(Odd(lambda row: (np.ones(2), 0.5 * row)), classes=1, labels="none", test_share=0.5)
    x, y = Regression().fitted(dataset).pool.batch(slice(None))
    assert isinstance(x, Tensor)
    assert x.dtype == torch.float32
    assert sorted(y.tolist()) == [0.5 * row for row in range(10)]


def test_images_of_pil_become_tensors() -> None:
    pil = pytest.importorskip("PIL.Image")
    colour = pil.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    grey = colour.convert("L")
    dataset = torch_dataset(Odd(lambda row: (colour, 1)), classes=2, labels="none", mean=[0.5] * 3, std=[0.5] * 3)
    assert dataset.shape == (3, 4, 4)
    x, _ = dataset.pool.batch(slice(0, 1))
    assert isinstance(x, Tensor)
    assert x.min() == -1  # 0 of 255
    assert torch_dataset(Odd(lambda row: (grey, 1)), classes=2, labels="none").shape == (1, 4, 4)
    _, mask = torch_dataset(Odd(lambda row: (colour, grey)), classes=2, labels="none").pool.batch(slice(0, 1))
    assert list(mask.shape) == [1, 4, 4]


@pytest.mark.parametrize(("mean", "std"), [([0.5] * 2, [0.5] * 2), ([0.5] * 3, []), ([], [0.5]), ([0.5], [0.0])])
def test_a_mean_or_std_that_does_not_fit_the_channels_is_named(mean: list[float], std: list[float]) -> None:
    lazy = torch_dataset(Odd(lambda row: (np.ones((3, 4, 4)), 1)), classes=2, labels="none", mean=mean, std=std)
    ready = Examples(torch.ones(2, 3, 4, 4), torch.ones(2), tuple(mean), tuple(std))
    for examples in (lazy.pool, ready):
        with pytest.raises(UserError, match=r"^data: mean=.*: must be one number a channel"):
            examples.batch(slice(0, 1))


# Tables


CSV = """age,colour,smokes,who,outcome
30,red,true,a,no
40,blue,false,b,yes
50,red,false,a,yes
60,green,true,b,no
70,blue,true,a,yes
"""


DATED = "day,outcome\n" + "".join(f"2026-{i % 66:03},{'yes' if i % 2 else 'no'}\n" for i in range(99))


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    extra("pandas")
    path = tmp_path / "mine.csv"
    path.write_text(CSV * 1)
    return path


def test_a_table_by_hand(csv: Path, tmp_path: Path) -> None:
    test = tmp_path / "test.csv"
    test.write_text("age,colour,smokes,who,outcome\n45,red,true,b,no\n")
    dataset = table(str(csv), target="outcome", owner="who", test=str(test))
    assert (dataset.name, dataset.train_size, dataset.classes) == ("mine", 5, 2)
    assert dataset.pool.y.tolist() == [0, 1, 1, 0, 1, 0]  # no, yes
    ages = (np.array([30, 40, 50, 60, 70, 45]) - 50) / np.std([30, 40, 50, 60, 70])
    expected = np.column_stack(
        [ages, [0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 1]]  # blue, green, red
    )
    torch.testing.assert_close(dataset.pool.single[:, :4], torch.tensor(expected, dtype=torch.float32))
    assert dataset.shape == (5,)
    assert dataset.owner is not None
    assert dataset.owner.tolist() == [0, 1, 0, 1, 0, 1]
    split = Natural(min_size=1).split(dataset, 0)
    assert [len(part) for part in split.train] == [3, 2]

    plain = table(str(csv), target="age", test=str(test), features=["smokes"], standardise=False, classes=1)
    assert plain.pool.single.tolist() == [[1], [0], [0], [1], [1], [1]]
    assert (plain.classes, plain.pool.y.tolist()) == (1, [30, 40, 50, 60, 70, 45])
    Regression().fitted(plain)


def test_several_hosts_have_the_same_columns_by_their_categories(csv: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("age,colour,smokes,who,outcome\n30,red,true,a,yes\n31,red,true,a,yes\n")
    known = {"colour": ["red", "green", "blue"], "outcome": ["no", "yes"]}
    here, there = (
        table(str(path), target="outcome", drop=["who"], categories=known, test=str(path)) for path in (csv, other)
    )
    assert here.shape == there.shape == (5,)
    assert there.pool.y.tolist() == [1] * 4
    assert there.pool.single[0, 1:4].tolist() == [1, 0, 0]


def test_a_share_of_a_table_is_for_test(csv: Path) -> None:
    csv.write_text(CSV + CSV.split("\n", 1)[1] * 9)
    dataset = table(str(csv), target="outcome", test_share=0.2)
    assert (len(dataset.pool), dataset.train_size) == (50, 40)
    assert np.bincount(dataset.pool.y[40:]).tolist() == [4, 6]
    assert run(Classification(), dataset)[-1]["accuracy"] > 0.4


def test_a_table_as_other_countries_write_it(csv: Path) -> None:
    first = table(str(csv), target="outcome", test=str(csv))
    csv.write_text(CSV.replace(",", ";").replace("0;", "0,0;"))
    second = table(str(csv), target="outcome", test=str(csv), separator=";", decimal=",")
    assert first.pool.digest() == second.pool.digest()


def test_many_words_are_features_where_they_come_again_or_are_listed(csv: Path) -> None:
    csv.write_text(DATED)
    days = [f"2026-{i:03}" for i in range(66)]
    assert table(str(csv), target="outcome", categories={"day": days}).shape == (66,)
    csv.write_text(DATED + DATED.split("\n", 1)[1])
    assert table(str(csv), target="outcome").shape == (66,)


def test_parquet_is_read_as_csv_is(csv: Path, tmp_path: Path) -> None:
    pandas, _ = extra("pandas"), extra("pyarrow")
    pandas.read_csv(csv).to_parquet(tmp_path / "mine.parquet")
    first, second = (table(str(p), target="outcome", test=str(p)) for p in (csv, tmp_path / "mine.parquet"))
    assert first.pool.digest() == second.pool.digest()


@pytest.mark.parametrize(
    ("given", "text", "line"),
    [
        ({"target": "none"}, CSV, "has no column none; it has age, colour, smokes, who, outcome"),
        ({"target": "outcome", "drop": ["ages"]}, CSV, "has no column ages"),
        ({"target": "outcome", "features": []}, CSV, "no column is left for features"),
        ({"target": "outcome"}, "age,outcome\n", "has no row"),
        ({"target": "outcome"}, "age,outcome\n1,yes\n,no\n", "column age lacks 1 of 2 values: fill=0"),
        ({"target": "outcome"}, "age,outcome\n1,yes\n2,\n", "column outcome, a target, lacks 1 of 2 values"),
        (
            {"target": "outcome", "categories": {"outcome": ["no"]}},
            CSV,
            "has 'yes', which is none of its categories: no",
        ),
        ({"target": "outcome"}, CSV.replace(",", ";"), "has one column, .*: data.load.separator=';' reads it"),
        ({"target": "outcome"}, DATED, "column day has 66 different words in 99 rows, .* leave it out with drop"),
        ({"target": "outcome", "test": "absent.csv"}, CSV, "absent.csv: no such file"),
        ({"target": "outcome", "test_share": 2}, CSV, "test_share=2"),
    ],
)
def test_a_table_that_will_not_do_is_named(csv: Path, given: dict[str, Any], text: str, line: str) -> None:
    csv.write_text(text)
    with pytest.raises(UserError, match=line) as error:
        table(str(csv), **given)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    extra("pandas")
    for name, line in (("mine.xls", "must end in .csv, .parquet, .pq"), ("mine.parquet", "cannot be read: ")):
        (tmp_path / name).write_bytes(b"\0nothing")
        with pytest.raises(UserError, match=line):
            table(str(tmp_path / name), target="y")


# LEAF and PFLlib


def leaf_files(folder: Path, x: Callable[[int], Any], y: Callable[[int], Any]) -> Path:
    for part, count in (("train", 6), ("test", 2)):
        (folder / part).mkdir(parents=True)
        for number, users in enumerate((["b", "a"], ["c"])):
            data = {user: {"x": [x(i) for i in range(count)], "y": [y(i) for i in range(count)]} for user in users}
            content = {"users": users, "num_samples": [count] * len(users), "user_data": data}
            (folder / part / f"{number}.json").write_text(json.dumps(content))
    return folder


def test_leaf_has_a_client_for_each_user(tmp_path: Path) -> None:
    folder = leaf_files(tmp_path / "femnist", lambda i: [0.5] * 16, lambda i: i % 3)
    dataset = leaf(str(folder), shape=[1, 4, 4])
    assert (len(dataset.pool), dataset.train_size, dataset.classes, dataset.shape) == (24, 18, 3, (1, 4, 4))
    split = Natural(min_size=1).split(dataset, 0)
    assert [[len(part) for part in parts] for parts in (split.train, split.test)] == [[6, 6, 6], [2, 2, 2]]
    texts = leaf_files(tmp_path / "shakespeare", lambda i: "abcz", lambda i: "b")
    told = leaf(str(texts), shape=[4], alphabet="abc", classes=4)
    assert told.pool.single[0].tolist() == [1, 2, 3, 0]
    assert told.pool.y.tolist() == [2] * 24


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda folder: (folder / "train" / "0.json").write_text("{"), "is no file of LEAF"),
        (
            lambda folder: (folder / "train" / "0.json").write_text('{"user_data": {"a": {"x": [1]}}}'),
            "is no file of LEAF",
        ),
        (lambda folder: [file.unlink() for file in (folder / "test").iterdir()], "holds no .json of LEAF"),
    ],
)
def test_damaged_files_of_leaf_are_named(tmp_path: Path, change: Callable[[Path], Any], line: str) -> None:
    folder = leaf_files(tmp_path / "femnist", lambda i: [0.5] * 16, lambda i: i % 3)
    change(folder)
    with pytest.raises(UserError, match=line):
        leaf(str(folder), shape=[16])


def test_leaf_with_another_shape_or_without_an_alphabet_says_so(tmp_path: Path) -> None:
    folder = leaf_files(tmp_path / "femnist", lambda i: [0.5] * 16, lambda i: i % 3)
    with pytest.raises(UserError, match=r"an input has 16 numbers; data.shape=\[3\] has 3"):
        leaf(str(folder), shape=[3])
    with pytest.raises(UserError, match=r"data\.load\.alphabet: is required"):
        leaf(str(leaf_files(tmp_path / "text", lambda i: "ab", lambda i: 0)), shape=[2])


def pfllib_files(folder: Path) -> Path:
    for part, count in (("train", 6), ("test", 2)):
        (folder / part).mkdir(parents=True)
        for client in (0, 1, 10):
            data = {"x": np.full((count, 1, 4, 4), client, np.float32), "y": np.arange(count) % 3}
            with (folder / part / f"{client}.npz").open("wb") as file:
                np.savez_compressed(file, data=data)  # a pickled object, as PFLlib writes it
    return folder


def test_pfllib_has_a_client_for_each_file(tmp_path: Path) -> None:
    dataset = pfllib(str(pfllib_files(tmp_path / "mnist")))
    assert (len(dataset.pool), dataset.train_size, dataset.classes, dataset.shape) == (24, 18, 3, (1, 4, 4))
    parts = Partitioned(Classification().fitted(dataset), Natural(min_size=1), 0)
    for client, number in enumerate((0, 1, 10)):
        assert parts[client].train.single.unique().tolist() == [number]
        assert parts[client].test.single.unique().tolist() == [number]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("never",)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (lambda file: file.write(b"no archive"), "is none of PFLlib's"),
        (lambda file: np.savez(file, other=np.ones(2)), "is none of PFLlib's"),
        (lambda file: np.savez(file, data=np.ones(2)), "its data is an array of float64"),
        (lambda file: np.savez(file, data={"x": np.ones(3), "y": np.ones(2)}), "3 inputs and 2 targets"),
        (lambda file: np.savez(file, data={"x": Evil(), "y": np.ones(2)}), "is refused: it asks for builtins.print"),
    ],
)
def test_a_file_that_is_none_of_pfllibs_is_refused(tmp_path: Path, content: Callable[[Any], Any], line: str) -> None:
    folder = pfllib_files(tmp_path / "mnist")
    with (folder / "train" / "1.npz").open("wb") as file:
        content(file)
    with pytest.raises(UserError, match=line):
        pfllib(str(folder))


# Hugging Face folders


def test_a_saved_dataset_is_read_lazily(tmp_path: Path) -> None:
    datasets = extra("datasets")
    rows = {"pixels": [[float(i), 1.0] for i in range(12)], "label": [i % 3 for i in range(12)], "more": ["x"] * 12}
    whole = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(3))}).save_to_disk(str(tmp_path / "saved"))
    dataset = hf_folder(str(tmp_path / "saved"), inputs="pixels", target="label")
    assert (len(dataset.pool), dataset.train_size, dataset.classes, dataset.shape) == (15, 12, 3, (2,))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2] * 5
    x, y = dataset.pool.batch(slice(10, 13))
    assert isinstance(x, Tensor)
    assert (x[:, 0].tolist(), y.tolist()) == ([10, 11, 0], [1, 2, 0])
    assert not dataset.pool.in_memory
    assert isinstance(hf_folder(str(tmp_path / "saved"), inputs="pixels", target="label", cache=True).pool, Examples)
    rows["count"] = list(range(12))
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "both"))
    both = hf_folder(str(tmp_path / "both"), inputs=["pixels", "count"], target="label")
    assert both.shape == {"pixels": (2,), "count": ()}


class Letters:
    vocabulary = 27

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]


def test_texts_become_tokens_of_one_length_and_files_are_read(tmp_path: Path) -> None:
    extra("datasets")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.csv").write_text("text,label\nab,0\nabcdef,1\n" + "z,1\n" * 8)
    given: dict[str, Any] = {"inputs": "text", "target": "label", "length": 4, "test_share": 0.5}
    dataset = hf_folder(str(tmp_path / "files"), tokenizer=Letters(), **given)
    rows = dataset.pool.batch(slice(None))[0]
    assert isinstance(rows, Tensor)
    assert {tuple(row) for row in rows.tolist()} == {(1, 2, 0, 0), (1, 2, 3, 4), (26, 0, 0, 0)}
    with pytest.raises(UserError, match=r"data\.load\.tokenizer: is required, for the column text is text"):
        _ = hf_folder(str(tmp_path / "files"), **given).shape


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"path": "absent"}, "absent: no such folder"),
        ({"train": "training"}, "has no split training; it has train"),
        ({"inputs": "image"}, "has no column image; it has x, label"),
        ({"target": "y"}, "has no column y"),
    ],
)
def test_a_folder_that_will_not_do_is_named(tmp_path: Path, given: dict[str, Any], line: str) -> None:
    datasets = extra("datasets")
    datasets.Dataset.from_dict({"x": [[1.0]] * 4, "label": [0, 1] * 2}).save_to_disk(str(tmp_path / "saved"))
    settings: dict[str, Any] = {"path": str(tmp_path / "saved"), "inputs": "x", "target": "label"} | given
    with pytest.raises(UserError, match=line):
        hf_folder(**settings)
