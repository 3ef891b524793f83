"""What a person looks at: the numbers of a round, the pictures, the table in a terminal and outside one."""

import io
import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial

import numpy as np
import pytest
from test_runs import SMALL, fedshare

import world
from deployed import eventually
from fedshare.experiments.running import adversaries
from fedshare.report import clock, collaboration
from fedshare.report.collaboration import collaboration_plot
from fedshare.report.console import Lap, Progress, fitting
from fedshare.report.plots import partition_plot, progress_plot
from fedshare.report.rows import caution
from fedshare.report.summary import summary
from fedshare.report.units import human_bytes, human_seconds
from fedshare.rounds import Schedule, run_server
from fedshare.simulation import Simulation
from fedshare.tasks import Classification
from fedshare.tasks.metrics import summarise, weighted_mean, worst_share

ONE = Schedule(rounds=1, seed=0, max_examples=100)
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def row(number, **more):
    return {
        "round": number,
        "bytes_up": 1000,
        "bytes_down": 2_500_000,
        "seconds": {"download": 0.0, "train": 3.0, "aggregate": 0.0, "evaluate": 0.5, "save": 0.0},
        "dropped": {},
        "digest": "0123456789abcdef" * 4,
        **more,
    }


def evaluated(number, accuracy=0.5):
    per_client = {"accuracy": {"0": accuracy, "1": accuracy / 2}, "loss": {"0": 1.0, "1": 2.0}}
    numbers = {"accuracy": accuracy, "accuracy_mean": 0.4, "accuracy_worst10": 0.25, "loss": 1.25}
    return row(number, **numbers, per_client=per_client)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


# ---------------------------------------------------------------------------------------------------- metrics


def test_weighted_mean_and_worst_share():
    assert weighted_mean([1.0, 4.0], [3, 1]) == 1.75
    assert weighted_mean([1.0, math.nan], [1, 0]) == 1.0
    assert math.isnan(weighted_mean([], []))
    assert math.isnan(weighted_mean([1.0], [0]))
    assert math.isnan(weighted_mean([math.inf, -math.inf], [1, 1]))
    assert worst_share([0.3, 0.1, 0.2]) == 0.1
    assert worst_share(list(range(100, 0, -1)), 0.1) == 5.5
    assert worst_share(list(range(100)), 0.29) == 14  # of 29 values, though 0.29 * 100 < 29
    assert math.isnan(worst_share([0.1, math.nan, 0.2]))
    with pytest.raises(ValueError, match="share"):
        worst_share([1.0], 0.0)


TASK = Classification()


def test_summarise_by_hand():
    clients = {
        10: world.tested(accuracy=1.0, loss=0.1, examples=30),
        2: world.tested(accuracy=0.5, loss=0.5, examples=10),
        3: world.tested(accuracy=0.0, loss=9.0, examples=0),
    }
    assert summarise(TASK, clients) == {
        "headline": "accuracy",
        "better": "higher",
        "accuracy": 0.875,
        "accuracy_mean": 0.75,
        "accuracy_worst10": 0.5,
        "loss": pytest.approx(0.2, rel=1e-15),
        "per_client": {
            "accuracy": {"2": 0.5, "10": 1.0},
            "loss": {"2": 0.5, "10": pytest.approx(0.1, rel=1e-15)},
            "examples": {"2": 10, "10": 30},
        },
    }
    assert list(summarise(TASK, clients)["per_client"]["loss"]) == ["2", "10"]
    assert summarise(TASK, {3: clients[3]}) == {}


def test_summarise_does_not_depend_on_the_order_of_clients():
    clients = {i: world.tested(0.1 + i / 7, 10.0 ** (9 * i - 18), 3 + i) for i in range(5)}
    answers = [repr(summarise(TASK, dict(order))) for order in itertools.permutations(clients.items())]
    assert len(set(answers)) == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_one_broken_loss_is_counted_and_spares_accuracy_and_mean(loss):
    summed = summarise(TASK, {0: world.tested(0.5, loss, 2), 1: world.tested(1.0, 1.0, 2)})
    assert summed["accuracy"] == 0.75
    assert summed["loss"] == 1.0
    assert summed["not_finite"] == {"loss": [0]}
    assert not math.isfinite(summed["per_client"]["loss"]["0"])
    nobodys = summarise(TASK, {0: world.tested(0.5, loss, 2), 1: world.tested(1.0, loss, 2)})
    assert math.isnan(nobodys["loss"])
    assert nobodys["accuracy"] == 0.75


# ---------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (3, 10), (40, 40), (41, 10), (5, 100), (1000, 10)])
def test_partition_plot_is_small_and_the_same_every_time(tmp_path, clients, classes):
    counts = np.arange(clients * classes).reshape(clients, classes) % 17 * 5
    for name in ("a.svg", "b.svg"):
        partition_plot(counts, tmp_path / name, "Dirichlet, $alpha$=0.1 <&>")
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert len(picture) < 400_000
    texts = [element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Dirichlet, $alpha$=0.1 <&>", "class", "examples"} <= set(texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg"]


def test_partition_plot_shows_who_holds_what(tmp_path):
    pictures = []
    for counts in ([[5, 0], [0, 5]], [[0, 5], [5, 0]], [[0, 0], [0, 0]]):
        partition_plot(np.array(counts), tmp_path / "p.svg")
        pictures.append((tmp_path / "p.svg").read_bytes())
    assert len(set(pictures)) == 3


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(1)],
        [evaluated(1)],
        [row(1), evaluated(2), row(3), evaluated(4, 0.7)],
        [evaluated(1), {"round": 2, "accuracy": math.nan, "accuracy_mean": None}],
        [evaluated(1) | {"accuracy": None, "loss": None, "per_client": {"accuracy": {"0": None}}}, evaluated(2)],
        [evaluated(number) for number in range(1, 101)],
    ],
)
def test_progress_plot_draws_what_there_is(tmp_path, rows):
    for name in ("a.svg", "b.svg"):
        progress_plot(rows, tmp_path / name)
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    text = picture.decode()
    assert ("no evaluation yet" in text) == (not any("accuracy" in row for row in rows))
    assert "nan" not in text
    assert "round" in text
    assert "bytes so far" in text


@pytest.mark.process
def test_drawing_leaves_no_trace_in_the_process(tmp_path):
    code = f"""if True:
        import sys, fedshare.report.plots as plots
        assert "matplotlib" not in sys.modules
        import matplotlib
        before = matplotlib.rcParams.copy()  # reading the backend would import pyplot
        plots.progress_plot([], {str(tmp_path / "a.svg")!r})
        assert matplotlib.rcParams.copy() == before
        assert "matplotlib.pyplot" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def collaborating(number, clients=(0, 1, 2), most=0.5, **more):
    """A round in which neighbours collaborate."""
    values = [[1.0 if a == b else most / (1 + abs(a - b)) for b in clients] for a in clients]
    return {
        "round": number,
        "overlap": {"clients": list(clients), "values": values},
        "collaborators": {str(a): [b for b in clients if abs(a - b) == 1] for a in clients},
        "threshold": 0.2,
        "overlap_mean": 0.15,
        "overlap_max": most / 2,
        **more,
    }


@pytest.mark.long
@pytest.mark.parametrize(
    "rows",
    [
        [collaborating(1, [5])],
        [collaborating(number) for number in (1, 2, 3)],
        [row(1), collaborating(2), row(3), evaluated(4) | collaborating(4, [0, 2, 3])],
        [collaborating(1, most=0.0, threshold=None, overlap_mean=None)],
        [collaborating(1) | {"overlap": None}],
        [collaborating(1) | {"collaborators": None}],
        [collaborating(number, range(number % 10, 1000, 10)) for number in range(1, 11)],
        [collaborating(number, range(20)) for number in range(1, 51)],
        [collaborating(number, range(100)) for number in range(1, 101)],
    ],
)
def test_collaboration_plot_draws_what_there_is(tmp_path, rows):
    for name in ("a.svg", "b.svg"):
        assert collaboration_plot(rows, tmp_path / name)
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    assert len(picture) < 400_000
    texts = {element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")}
    both = any(len((row.get("overlap") or {"clients": ()})["clients"]) > 1 for row in rows)
    assert ({f"overlap in round {rows[-1]['round']}; dots: they collaborate", "threshold"} <= texts) == both
    chosen = any(row.get("collaborators") for row in rows)
    assert ({"collaborators", "rounds", "how many collaborators; grey: not in the round"} <= texts) == chosen
    assert not re.search(rb' d="[^"]*nan', picture)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(1), evaluated(2)],
        [row(1, overlap=0.3, collaborators=4, threshold=0.1)],
        [row(1, collaborators={"a": 1})],
    ],
)
def test_nothing_is_drawn_of_rounds_that_do_not_tell(tmp_path, rows):
    assert not collaboration_plot(rows, tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_the_fields_of_the_collaboration_plot_by_hand(tmp_path, monkeypatch):
    fields, dots, heat_map, enlarged = [], [], collaboration.heat_map, collaboration.enlarged
    monkeypatch.setattr(
        collaboration, "heat_map", lambda *a, **k: fields.append((a[2], k.get("left"))) or heat_map(*a, **k)
    )
    monkeypatch.setattr(collaboration, "enlarged", lambda cells: dots.append(cells) or enlarged(cells))
    rows = [
        collaborating(3, [0, 4], collaborators={"0": [4], "4": []}),
        row(4),
        collaborating(5, [0, 4, 7], collaborators={"0": [4, 7], "4": [0], "7": []}),
    ]
    collaboration_plot(rows, tmp_path / "a.svg")
    overlap, numbers, partners = [field.tolist() for field, _ in fields]
    assert overlap == [[None, 0.1, 0.0625], [0.1, None, 0.125], [0.0625, 0.125, None]]
    assert [field.tolist() for field in dots] == [[[False, True, True], [True, False, False], [False, False, False]]]
    assert numbers == [[1, None, 2], [0, None, 1], [None, None, 0]]  # a row a client, a column a round
    assert [left for _, left in fields] == [None, 3, None]  # from round 3 on
    assert partners == [[None, 2, 1], [1, None, 0], [0, 0, None]]


@pytest.mark.long
def test_the_collaboration_plot_shows_every_change_but_on_the_diagonal(tmp_path):
    def drawn(**more):
        collaboration_plot([collaborating(1), collaborating(2, **more)], tmp_path / "a.svg")
        return (tmp_path / "a.svg").read_bytes()

    diagonal = collaborating(2)["overlap"]
    diagonal["values"] = [
        [9.0 if a == b else value for b, value in enumerate(line)] for a, line in enumerate(diagonal["values"])
    ]
    assert drawn(overlap=diagonal) == drawn()
    others = [
        {"collaborators": {"0": [1], "1": [0], "2": []}},
        {"threshold": 0.3},
        {"overlap_mean": 0.1},
        {"most": 0.4},
    ]
    assert len({drawn(**more) for more in [{}, *others]}) == 5


def test_a_threshold_out_of_reach_leaves_room_for_the_overlaps(tmp_path):
    def heights(threshold):
        collaboration_plot([collaborating(number, threshold=threshold) for number in (1, 2)], tmp_path / "a.svg")
        return re.search(r'<path d="([^"]*)"[^>]*stroke: #0072b2', (tmp_path / "a.svg").read_text()).group(1)

    assert heights(0.2) == heights(1e6)


@pytest.mark.long
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_draws_who_collaborates(tmp_path, monkeypatch, capfd, stopped):
    def stop(*arguments):
        yield from itertools.islice(rounds(*arguments), 2)
        raise KeyboardInterrupt

    rounds = adversaries.run_server
    if stopped:
        monkeypatch.setattr(adversaries, "run_server", stop)
    folder = tmp_path / "run"
    small = ["strategy=fedcac", "workers=0", *SMALL, "rounds=3"]
    assert fedshare("run", f"folder={folder}", *small) == (130 if stopped else 0)
    title = f"overlap in round {2 if stopped else 3}; dots"
    assert title in (folder / "collaboration.svg").read_text()
    assert (f"{folder}: accuracy.svg, collaboration.svg, partition.svg" in capfd.readouterr().out) != stopped


def test_a_run_without_collaborators_draws_none(tmp_path, capfd):
    assert fedshare("run", f"folder={tmp_path}/run", "strategy=local", "workers=0", *SMALL, "rounds=1") == 0
    assert f"{tmp_path}/run: accuracy.svg, partition.svg" in capfd.readouterr().out
    assert not (tmp_path / "run" / "collaboration.svg").exists()


# ---------------------------------------------------------------------------------------------------- the table


def test_plain_lines_outside_a_terminal():
    stream = io.StringIO()
    with Progress(rounds=3, header="fedavg · mnist", stream=stream) as progress:
        progress.row(row(1))
        progress.note("client 7 dropped: \x1b[31mNaN\n")
        progress.row(evaluated(2) | {"dropped": {"7": "NaN"}, "seconds": {"train": 1.0, "save": 0.1}})
        assert stream.getvalue().endswith("\n")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "fedavg · mnist"
    assert lines[1:] == [
        "round     acc    mean  worst10%     loss        up      down  s/round    digest  notes",
        "    1       -       -         -        -    1.0 kB    2.5 MB     3.50  01234567",
        "! client 7 dropped: \\x1b[31mNaN\\n",
        "    2  0.5000  0.4000    0.2500   1.2500    1.0 kB    2.5 MB     1.10  01234567  ckpt, dropped 1",
    ]


@pytest.mark.parametrize(
    ("tests", "clients", "says"),
    [
        ([10, 10], 2, "worst10% is 1 of 2 clients, with 10 to 10 test examples each; 20 test examples in all, so that "
         "one is 5 % of them"),
        ([5, 0, 95], 3, "worst10% is 1 of 2 clients, with 5 to 95 test examples each"),
        ([3] * 30, 30, "90 test examples in all, so that one is 1.1 % of them"),
        ([0] * 29, 29, "worst10% is 2 of 29 clients"),
        ([4] * 30, 30, None),
        ([0] * 30, 30, None),
    ],
)  # fmt: skip
def test_too_few_to_measure_by_is_said(tests, clients, says):
    assert caution(tests, clients) == (f"few to measure by: {says}" if says else "")


def test_what_is_few_is_said_once_before_the_rounds(tmp_path, capfd):
    for overrides, times in (([], 1), (["evaluate_every=0"], 0)):
        folder = f"folder={tmp_path}/{times}"
        assert fedshare("run", folder, "strategy=local", "workers=0", *SMALL, "rounds=2", *overrides) == 0
        lines = capfd.readouterr().out.splitlines()
        assert [line.startswith("! few to measure by: ") for line in lines].count(True) == times
        assert lines[1].startswith("! few" if times else "round")


def test_the_plot_says_method_data_and_seed(tmp_path, capfd):
    for name, title in (("", "local-digits-dirichlet · seed 3"), ("mine", "mine · Local on digits · seed 3")):
        folder = tmp_path / f"run{name}"
        own = [f"name={name}"] if name else []
        assert (
            fedshare("run", f"folder={folder}", "strategy=local", "workers=0", *SMALL, "rounds=1", "seed=3", *own) == 0
        )
        assert f">{title}<" in (folder / "accuracy.svg").read_text()


def test_equal_lines_are_both_seen(tmp_path):
    """No line is as another, or would lie under it: colours, widths and dashes differ."""
    progress_plot([evaluated(n, 0.4) | {"accuracy_worst10": 0.4} for n in range(1, 40)], tmp_path / "a.svg")
    drawn = re.findall(r'<path d="M[^"]*L[^"]*"[^>]*style="fill: none; ([^"]*)"', (tmp_path / "a.svg").read_text())
    lines = [style for style in drawn if any(colour in style for colour in ("#0072b2", "#009e73", "#d55e00"))][:3]
    assert [("stroke-dasharray" in style) for style in lines] == [False, True, True]
    widths = [float(re.search(r"stroke-width: ([\d.]+)", style).group(1)) for style in lines]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3


def test_plain_lines_are_flushed_one_by_one():
    class Stream(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue().count("\n"))

    flushed = []
    with Progress(rounds=2, stream=Stream()) as progress:
        progress.row(row(1))
        progress.row(row(2))
    assert flushed == [1, 2, 3]


def test_a_stream_without_unicode_is_no_reason_to_stop():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Progress(rounds=1, header="fedavg · mnist", stream=stream) as progress:
        progress.note("naïve")
    assert stream.buffer.getvalue().decode("ascii").splitlines()[0] == "fedavg ? mnist"


@pytest.mark.parametrize("width", [30, 80, 100, 200])
def test_no_line_of_the_table_is_wider_than_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(rounds=12, first=11, header="fedavg", stream=stream) as progress:
        progress.row(evaluated(11))
        progress.row(evaluated(12) | {"dropped": {"1": "late"}, "seconds": {"train": 1.0, "save": 0.1}})
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", ANSI.sub("", stream.getvalue()))]
    assert all(len(line) <= width for line in lines)
    assert sum(line.lstrip().startswith("12 ") for line in lines) == 1
    assert any("12/12" in line for line in lines)
    if width >= 80:
        assert any(line.endswith("ckpt, dropped 1") for line in lines)


def test_within_a_round_a_terminal_shows_how_far_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(rounds=5, stream=stream) as progress:
        for done in range(4):
            progress.heard("train", 1, done, 4)
        progress.bar.refresh()
        shown = ANSI.sub("", stream.getvalue())
        assert re.search(r"train .* 3/4 .* left", shown)
        progress.row(row(1))
        assert not any(task.visible for task in progress.bar.tasks[1:])


def test_elsewhere_a_line_says_so_every_now_and_then():
    stream = io.StringIO()
    with Progress(rounds=5, stream=stream, every=0.01) as progress:
        progress.heard("train", 3, 0, 4)
        progress.heard("train", 3, 1, 4)
        eventually(lambda: stream.getvalue().count("round 3, train: 1 of 4 clients in ") >= 2, "two lines")
        progress.row(row(3))
    lines = stream.getvalue().splitlines()
    assert all("train" in line for line in lines[1:-1])
    assert lines[-1].startswith("    3 ")


def test_between_rounds_and_in_short_ones_nothing_more_is_said():
    stream = io.StringIO()
    with Progress(rounds=2, stream=stream) as progress:
        for done in range(3):
            progress.heard("train", 1, done, 2)
        progress.row(row(1))
    assert len(stream.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    ("done", "lasted", "says"),
    [
        (1, None, "1 of 4 clients in 40.0 s, about 2 min 00 s left"),
        (4, 5.0, "4 of 4 clients in 40.0 s, about 0.00 s left"),
        (0, None, "0 of 4 clients in 40.0 s"),
        (0, 60.0, "0 of 4 clients in 40.0 s, about 20.0 s left"),
        (0, 30.0, "0 of 4 clients in 40.0 s, about 0.00 s left"),
    ],
)
def test_what_is_left_goes_by_who_is_done_or_by_the_last_time(done, lasted, says):
    assert Lap("train", 7, 4, 100.0, done).line(140.0, lasted) == f"  round 7, train: {says}"


def test_the_lines_of_a_deployments_rounds_have_the_time():
    stream = io.StringIO()
    with Progress(rounds=1, stream=stream, times=True) as progress:
        progress.row(row(1))
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in stream.getvalue().splitlines())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_a_network_tells_of_each_answer(workers):
    heard = []
    with Simulation(partial(world.build, "fedavg"), workers) as network:
        state = {"params": network.population.scratch.initial}
        listen = lambda purpose, *counts: heard.append((purpose.value, *counts))  # noqa: E731
        list(run_server(network.population.strategy, network, state, ONE, heard=listen))
    assert heard == [(purpose, 1, done, 5) for purpose in ("train", "evaluate") for done in range(6)]


def test_columns_go_by_importance():
    titles = [[column.title for column in fitting(width)] for width in (None, 80, 22, 1)]
    assert len(titles[0]) == 10
    assert titles[1:] == [
        ["round", "acc", "worst10%", "loss", "up", "s/round", "digest", "notes"],
        ["round", "acc"],
        ["round"],
    ]


def test_no_color(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLORTERM", "truecolor")
    colours = []
    for setting in ("", "1"):
        monkeypatch.setenv("NO_COLOR", setting) if setting else monkeypatch.delenv("NO_COLOR", raising=False)
        stream = Terminal()
        with Progress(rounds=1, stream=stream) as progress:
            progress.row(evaluated(1))
        codes = re.findall(r"\x1b\[([0-9;]*)m", stream.getvalue())
        colours.append(any(part.startswith(("3", "9")) and len(part) > 1 for c in codes for part in c.split(";")))
    assert colours == [True, False]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(rounds=1, stream=stream) as progress:
        progress.row(row(1))
    assert "\x1b" not in stream.getvalue()


# ---------------------------------------------------------------------------------------------------- the last lines


def test_summary_by_hand():
    rows = [evaluated(1, 0.75), row(2, dropped={"7": "NaN", "3": "late"}), evaluated(3) | {"dropped": {"7": "NaN"}}]
    assert summary(rows, "runs/a").splitlines() == [
        "accuracy  0.5000 in round 3 (mean of clients 0.4000, worst 10 % 0.2500)",
        "loss      1.2500",
        "traffic   3.0 kB up, 7.5 MB down",
        "time      10.5 s: train 9.00 s, evaluate 1.50 s",
        "dropped   3, by client: 7 (2x), 3 (1x)",
        "files     runs/a",
    ]
    diverged = evaluated(4) | {"accuracy_mean": None, "loss": None}  # JSON has no NaN
    assert summary([diverged], "runs/b").splitlines()[:2] == [
        "accuracy  0.5000 in round 4 (mean of clients -, worst 10 % 0.2500)",
        "loss      -",
    ]
    assert summary([], "runs/b").splitlines()[-1] == "files     runs/b"


def test_units():
    assert [human_bytes(n) for n in (0, 999, 1000, 12_345, 999_499, 999_999, 5e12, 5e16)] == [
        "0 B", "999 B", "1.0 kB", "12.3 kB", "999 kB", "1.0 MB", "5.0 TB", "50000 TB",
    ]  # fmt: skip
    assert [human_seconds(s) for s in (0.123, 12.34, 59.97, 61, 3599.7, 7380)] == [
        "0.12 s", "12.3 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 03 min",
    ]  # fmt: skip


def test_each_line_of_a_log_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or lines of several threads would run into each other."""
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            if text:
                writes.append(text)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Stream())
    monkeypatch.setattr(sys, "stderr", Stream())
    clock.say("client 2 is back")
    clock.tell("two\nlines")
    with Progress(rounds=1, stream=Stream()) as progress:
        progress.note("client 2 is late")
    assert len(writes) == 4
    assert all(text.endswith("\n") for text in writes)
