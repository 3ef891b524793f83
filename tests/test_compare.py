"""`fedshare compare`: the same clients in several runs, in a terminal, as CSV and as a picture."""

import csv
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_runs import SMALL, fedshare

import world
from fedshare.report.compare import Run, comparison, comparison_csv, comparison_plot, last_evaluation, titles, unlike
from fedshare.tasks import Classification
from fedshare.tasks.metrics import summarise

Make = Callable[..., Path]


def run(name: str, accuracy: list[float], examples: list[int] | None = None, round: int = 9) -> Run:
    examples = examples or [10] * len(accuracy)
    clients = {
        client: world.tested(value, 1.0, count) | {"correct": torch.tensor(value * count, dtype=torch.float64)}
        for client, (value, count) in enumerate(zip(accuracy, examples, strict=True))
    }
    made = last_evaluation([{"round": round, **summarise(Classification(), clients)}], name, f"runs/{name}")
    assert made is not None
    return made


def test_the_table_by_hand() -> None:
    examples = [30, 1000, 70]
    runs = [
        run("fedcac", [0.5, 0.9, 0.7], examples),
        run("fedavg", [0.6, 0.8, 0.7], examples),
        run("local", [0.1, 0.9, 0.7], examples, round=10),
    ]
    assert comparison(runs).splitlines() == [
        "fedcac  runs/fedcac, round 9",
        "fedavg  runs/fedavg, round 9",
        "local   runs/local, round 10",
        "",
        "              client  test examples  fedcac   fedavg    local",
        "                   0             30  0.5000   0.6000*  0.1000",
        "                   1          1,000  0.9000*  0.8000   0.9000*",
        "                   2             70  0.7000   0.7000   0.7000",
        "",
        "     mean of clients                 0.7000*  0.7000*  0.5667",
        "  standard deviation                 0.1633   0.0816   0.3399",
        "          worst 10 %                 0.5000   0.6000*  0.1000",
        "        all examples          1,100  0.8764*  0.7882   0.8655",
        "        Jain's index                 0.9484   0.9866   0.7354",
        "fairness with fedcac                      -   100.00    96.08",
        "",
        "fedcac is better than fedavg for 1 of 3 clients, worse for 1",
        "fedcac is better than local for 1 of 3 clients, worse for 0",
    ]


def test_fairness_that_is_not_defined_says_why() -> None:
    lines = comparison([run("local", [0.1, 0.2, 0.3]), run("fedavg", [0.5] * 3), run("rffl", [0.6, 0.8, 0.7])])
    (fairness,) = (line for line in lines.splitlines() if line.strip().startswith("fairness with local  "))
    assert fairness.split() == ["fairness", "with", "local", "-", "nan", "50.00"]
    assert "\n\nfairness with local is nan where accuracies do not spread\n\n" in lines
    assert "do not spread" not in comparison([run("local", [0.1, 0.2]), run("rffl", [0.6, 0.8])])


def test_of_many_clients_those_that_differ_most_are_shown() -> None:
    def table(clients: int) -> list[str]:
        other = [0.5 + (0.001 * client if client % 2 else -0.001 * client) for client in range(clients)]
        return comparison([run("a", [0.5] * clients), run("b", other)]).splitlines()

    assert not any("differ most" in line for line in table(60))
    assert sum(bool(re.match(r" +\d+ +10 ", line)) for line in table(60)) == 60
    many = table(61)
    assert many[3:5] == ["the 10 of 61 clients that differ most; --into FILE has all", ""]
    assert [int(line.split()[0]) for line in many[6:16]] == list(range(60, 50, -1))
    assert many[16] == ""
    assert many[-1] == "a is better than b for 30 of 61 clients, worse for 30"


def test_where_names_are_long_the_columns_are_numbered() -> None:
    names = [f"{number}-a-folder-with-a-long-name-in-it" for number in range(3)]
    lines = comparison([run(name, [0.1, 0.2]) for name in names]).splitlines()
    assert lines[1] == f"(2)  {names[1]}  runs/{names[1]}, round 9"
    assert lines[4].split() == ["client", "test", "examples", "(1)", "(2)", "(3)"]
    assert lines[-1] == f"{names[0]} is better than {names[2]} for 0 of 2 clients, worse for 0"


def test_a_number_that_is_not_there_is_a_dash() -> None:
    old = replace(run("old", [0.1, 0.3]), overall={"": 0.2, "_mean": None, "_worst10": None})
    (line,) = (line for line in comparison([old, run("new", [0.2, 0.3])]).splitlines() if "mean" in line)
    assert line.split() == ["mean", "of", "clients", "-", "0.2500"]


@pytest.mark.parametrize(
    ("names", "called"),
    [
        (["fedavg-digits-shards", "fedcac-digits-shards"], ["fedavg", "fedcac"]),
        (["fedavg-digits-shards", "fedavg-digits-iid"], ["fedavg-digits-shards", "fedavg-digits-iid"]),
        (["fedavg", "mine-fedavg"], ["fedavg", "mine-fedavg"]),
        (["fedavg-digits", "fedavg-digits"], ["A", "B"]),
    ],
)
def test_runs_are_called_by_what_their_names_do_not_share(names: list[str], called: list[str]) -> None:
    assert titles(names, ["A", "B"], ["x/A", "y/B"]) == called


def test_where_folders_have_one_name_too_the_path_remains() -> None:
    assert titles(["fedavg", "fedavg"], ["0", "0"], ["x/0", "y/0"]) == ["x/0", "y/0"]


def test_the_first_client_that_differs_is_named() -> None:
    a = run("a", [0.1, 0.2, 0.3], [10, 20, 30])
    assert unlike(a, run("b", [0.9, 0.9, 0.9], [10, 20, 30])) is None
    said = "client 1 was tested on 20 examples in runs/a and on 21 in runs/b"
    assert unlike(a, run("b", [0.1, 0.2, 0.3], [10, 21, 31])) == said
    less = run("b", [0.1], [10])
    assert unlike(a, less) == "client 1 was tested on 20 examples in runs/a and on 0 in runs/b"
    assert unlike(less, a) == "client 1 was tested on 0 examples in runs/b and on 20 in runs/a"


def test_csv_has_every_client_and_every_digit() -> None:
    text = comparison_csv([run('a,"b', [1 / 3] * 70), run("c", [0.1] * 70)])
    rows = list(csv.reader(text.splitlines()))
    assert rows[0] == ["client", "examples", 'a,"b', "c"]
    assert rows[1:] == [[str(client), "10", repr(1 / 3), "0.1"] for client in range(70)]


@pytest.mark.parametrize(("clients", "count"), [(1, 2), (20, 4), (50, 9), (100, 4), (500, 3)])
def test_the_picture_is_small_and_the_same_every_time(tmp_path: Path, clients: int, count: int) -> None:
    runs = [
        run(f"run <{number}>", [(client * 7 + number * 3) % clients / clients for client in range(clients)])
        for number in range(count)
    ]
    for name in ("a.svg", "b.svg"):
        comparison_plot(runs, tmp_path / name)
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert len(picture) < 300_000
    texts = [element.text or "" for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {f"run <{number}>" for number in range(count)} <= {text.partition(":")[0] for text in texts}
    assert "clients, from run <0>'s worst to its best" in texts
    if clients == 20:
        ids = [text for text in texts if text.isdigit()]
        assert ids == [str(client) for client in sorted(range(20), key=lambda client: client * 7 % 20)]


def test_the_picture_shows_every_accuracy(tmp_path: Path) -> None:
    pictures = set()
    for other in ([0.2, 0.3, 0.4], [0.4, 0.3, 0.2], [0.2, 0.3, 0.5]):
        comparison_plot([run("a", [0.1, 0.2, 0.3]), run("b", other)], tmp_path / "p.svg")
        pictures.add((tmp_path / "p.svg").read_bytes())
    assert len(pictures) == 3


def test_means_that_coincide_are_all_seen(tmp_path: Path) -> None:
    """The dashes of equal means take turns."""
    comparison_plot([run(name, [0.1, 0.2, 0.3]) for name in "abc"], tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    dashes = re.findall(r"stroke-dasharray: ([\d.]+),([\d.]+); stroke-dashoffset: (-?[\d.]+)", text)
    lines = list(dict.fromkeys(tuple(map(float, found)) for found in dashes))
    (dash, gap), offsets = lines[0][:2], [line[2] for line in lines]
    assert gap == pytest.approx(2 * dash)
    assert sorted(abs(offset) / dash for offset in offsets) == pytest.approx([0, 1, 2])


# Of folders


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A run's folder by its name and overrides, made once."""
    base = tmp_path_factory.mktemp("runs")

    def made(name: str, *overrides: str) -> Path:
        folder = base / name
        if not folder.exists():
            assert fedshare("run", f"folder={folder}", "workers=0", *SMALL, "rounds=2", *overrides) == 0
        return folder

    return made


def test_runs_of_the_same_clients_side_by_side(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = make("A"), make("B", "strategy=local")
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert fedshare("compare", str(a), str(b), "--into", "all.csv") == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[:2] == [f"fedavg  {a}, round 2", f"local   {b}, round 2"]
    assert [line.split()[0] for line in lines[4:10]] == ["0", "1", "2", "3", "4", "5"]
    assert re.fullmatch(r"fedavg is better than local for \d of 6 clients, worse for \d", lines[-2])
    assert lines[-1] == "all.csv: 6 clients"
    assert (tmp_path / "all.csv").read_text().startswith("client,examples,fedavg,local\n0,")
    assert fedshare("compare", str(a), str(b), "--into", "all.svg") == 0
    picture = (tmp_path / "all.svg").read_text()
    assert "fedavg: 0." in picture
    assert ">fedavg, local · digits-dirichlet · seed 0<" in picture


def test_runs_of_one_name_are_called_by_their_folders(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    a = make("A")
    subprocess.run(["cp", "-r", a, tmp_path / "again"], check=True)
    config = tmp_path / "again" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0\n", "seed: 1\n"))
    monkeypatch.chdir(tmp_path / "again")
    capfd.readouterr()
    assert fedshare("compare", str(a), ".") == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[:2] == [f"A      {a}, round 2", "again  ., round 2"]
    assert err == f"warning: {a} and . differ in seed: a client's examples need not be the same\n"


def test_what_cannot_be_compared_is_one_line_and_creates_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = make("A"), make("B", "strategy=local")
    five, never = make("five", "partition.clients=5"), make("never", "evaluate_every=0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").touch()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("- a\n")
    wrong = {
        f"{a}": "compare: takes two runs or more, not 1",
        f"{a} {tmp_path}": f"{tmp_path}: not a run's folder: it has no config.yaml",
        f"{a} {never}": f"{never}: no client has been tested yet",
        f"{a} {damaged}": f"{damaged}/config.yaml is damaged: it holds no keys",
        f"{a} {a}/../A": f"compare: {a} is named twice",
        f"{b} {a} {five}": r"compare: client 0 was tested on \d+ examples in .*/B and on \d+ in .*/five",
        f"{a} {b} --into all.png": "all.png: must end in .csv or .svg",
        f"{a} {b} --into there.csv": "there.csv: is there already",
        f"{a} {b} --inot x.csv": "unrecognized arguments: --inot x.csv; see fedshare --help",
    }
    for arguments, said in wrong.items():
        capfd.readouterr()
        assert fedshare("compare", *arguments.split()) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert re.fullmatch(f"fedshare: {said}\n", err), err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "there.csv"]
    assert (tmp_path / "there.csv").read_text() == ""


def test_the_last_evaluation_counts_whatever_came_after() -> None:
    rows = [{"round": 1, **summarise(Classification(), {3: world.tested(0.5, 1.0, 4)})}, {"round": 2}]
    found = last_evaluation(rows, "a", "A")
    assert found is not None
    assert (found.round, found.accuracy, found.examples) == (1, {3: 0.5}, {3: 4})
    assert last_evaluation(rows[1:], "a", "A") is None


def test_help_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert fedshare("--help") == 0
    out = capfd.readouterr().out
    assert "compare  " in out
    assert "fedshare compare runs/A runs/B" in out
