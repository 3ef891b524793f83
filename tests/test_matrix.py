"""`fedshare matrix`: every attack against every defence, resumed cell by cell, as tables and as a heat map."""

import csv
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG
from omegaconf import OmegaConf
from test_data import write_mnist
from test_runs import fedshare

from fedshare.experiments.commands import crew
from fedshare.experiments.commands.plan import AXES, wanted
from fedshare.experiments.config.application import CONF, hydra
from fedshare.payload import Payload
from fedshare.report.cells import Entry, of_the_same_clients, with_fairness
from fedshare.report.matrix import matrix_csv, matrix_markdown
from fedshare.report.matrix_plot import matrix_plot
from fedshare.runs import RunFolder
from fedshare.state import State
from fedshare.strategies.fedavg import FedAvg

pytestmark = pytest.mark.long

TINY = [
    *("partition.clients=4", "attack.adversaries=1", "model.hidden=[16]", "client.epochs=1", "rounds=2"),
    *("attacks=none,sign_flip", "defences=fedavg,local", "partitions=iid", "seeds=[0]"),
]


def matrix(folder: Path, *overrides: str) -> int:
    return fedshare("matrix", *TINY, "workers=0", f"folder={folder}", *overrides)


def cells(folder: Path) -> dict[str, dict[str, Any]]:
    """What is kept, by attack and defence."""
    kept = [json.loads(path.read_text()) for path in (folder / "cells").iterdir()]
    return {f"{cell['attack']} {cell['defence']}": cell for cell in kept}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By worker processes."""
    folder = tmp_path_factory.mktemp("matrix") / "made"
    assert fedshare("matrix", *TINY, "workers=2", f"folder={folder}") == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    (folder / "cells").mkdir(parents=True)
    for path in (made / "cells").iterdir():
        (folder / "cells" / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.process
def test_a_matrix_leaves_what_a_person_needs(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {
        *("cells", "config.yaml", "matrix.csv"),
        "matrix.md",
        "matrix.svg",
    } | {".lock"}
    kept = cells(made)
    assert set(kept) == {"none fedavg", "none local", "sign_flip fedavg", "sign_flip local"}
    one = kept["sign_flip fedavg"]
    assert (one["partition"], one["seed"], one["rounds"], one["halted"]) == ("iid", 0, 2, None)
    assert {"accuracy_honest", "accuracy_adversaries", "per_client", "adversaries"} <= one["row"].keys()
    assert one["bytes_up"] == one["bytes_down"] == 2 * one["row"]["bytes_up"] > 0
    assert len({tuple(kept[f"sign_flip {name}"]["adversaries"]) for name in ("fedavg", "local")}) == 1
    assert kept["none fedavg"]["adversaries"] == [], "with no attack nobody is an adversary"
    (liar,) = one["adversaries"]
    accuracies = {int(c): value for c, value in kept["none fedavg"]["row"]["per_client"]["accuracy"].items()}
    honest = [value for client, value in accuracies.items() if client != liar]
    assert all(re.fullmatch(r"[0-9a-f]{16}\.json", path.name) for path in (made / "cells").iterdir())
    rows = list(csv.DictReader((made / "matrix.csv").read_text().splitlines()))
    assert [f"{row['attack']} {row['defence']}" for row in rows] == [*sorted(kept)]
    assert float(rows[0]["accuracy_honest"]) == pytest.approx(sum(honest) / 3), (
        "of the clients that the others are about"
    )
    assert float(rows[2]["accuracy_honest"]) == one["row"]["accuracy_honest"]
    assert (rows[0]["tested"], rows[0]["tested_of"]) == ("4", "4")
    assert float(rows[0]["client_3"]) == kept["none fedavg"]["row"]["per_client"]["accuracy"]["3"]
    text = (made / "matrix.md").read_text()
    assert "## iid\n\n### Accuracy of the honest clients\n\n|  | fedavg | local |\n" in text
    assert "who lies in some row is left out of all" in text
    _, obtained = text.split("### Accuracy that the adversaries obtain")
    assert "| sign_flip | " in obtained
    assert "| none | " not in obtained
    assert OmegaConf.load(made / "config.yaml").attacks == {"none": ["attack=none"], "sign_flip": ["attack=sign_flip"]}
    assert (made / "matrix.svg").read_text().startswith("<?xml")


@pytest.mark.process
def test_without_an_attack_nobody_is_left_out(copy: Path) -> None:
    assert matrix(copy, "attacks=none") == 0
    row = next(csv.DictReader((copy / "matrix.csv").read_text().splitlines()))
    assert float(row["accuracy_honest"]) == float(row["accuracy_mean"])
    assert (row["adversaries"], row["adversaries_weight"]) == ("", "")
    text, picture = (copy / "matrix.md").read_text(), (copy / "matrix.svg").read_text()
    assert "### Accuracy of the clients\n" in text
    assert not any(word in text + picture for word in ("adversar", "honest", "left out"))


@pytest.mark.process
def test_a_matrix_is_called_by_its_data(
    tmp_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path))
    assert matrix(copy, "-n", "data=mnist", "model=mlp", "partition.clients=3") == 0
    assert capfd.readouterr().out.startswith("mnist: ")
    assert wanted(hydra(), "matrix", ["data=mnist"])[1] == Path("matrices/mnist")
    assert wanted(hydra(), "matrix_fairness", [])[0].name == "fairness"


@pytest.mark.process
def test_a_cell_is_the_run_of_its_config_to_the_bit(made: Path, tmp_path: Path) -> None:
    cell = cells(made)["sign_flip fedavg"]
    whole = OmegaConf.load(made / "config.yaml")
    axes = [*whole.base, *whole.partitions.iid, *whole.attacks.sign_flip, *whole.defences.fedavg]
    assert fedshare("run", f"folder={tmp_path}/run", "workers=0", f"seed={cell['seed']}", *axes) == 0
    last = RunFolder.open(tmp_path / "run").rows()[-1]
    assert cell["row"]["digest"] == last["digest"]
    assert cell["row"]["accuracy_honest"] == last["accuracy_honest"]


@pytest.mark.process
def test_what_is_there_is_not_played_again(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = times(copy)
    assert matrix(copy, "name=another", "timeout=9") == 0
    assert "4 cells, 4 of them there already" in capfd.readouterr().out
    assert times(copy) == before
    assert matrix(copy, "attacks=none", "defences=[fedavg]", "seeds=0,1") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].endswith("2 cells, 1 of them there already")
    assert lines[1].startswith("1/1  none / fedavg / iid / seed 1: 0.")
    assert before.items() < times(copy).items()
    assert len(times(copy)) == 5
    assert len((copy / "matrix.csv").read_text().splitlines()) == 3


@pytest.mark.process
@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"row": {}}'])
def test_a_damaged_cell_is_played_again(copy: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    victim = sorted((copy / "cells").iterdir())[0]
    whole, before = json.loads(victim.read_text()), times(copy)
    victim.write_text(damage)
    assert matrix(copy) == 0
    err = capfd.readouterr().err
    assert err.startswith(
        f"warning: {victim} is damaged, and {whole['attack']} / {whole['defence']} / iid / seed 0 played"
    )
    assert err.count("\n") == 1
    assert json.loads(victim.read_text())["row"]["digest"] == whole["row"]["digest"]
    assert {name for name, time in times(copy).items() if time != before[name]} == {victim.name}


WRONG = {
    "attacks=none,sgn_flip": r"attack='sgn_flip': no such attack .*\(cell sgn_flip / fedavg / iid\)",
    "defences={a: 'strategy=fedavg strategy.mu=1'}": r".*strategy.mu: no such key.*\(cell none / a / iid\)",
    "client.optimizer.lr=fast": r"client.optimizer.lr=fast: must be a number.* \(cell none / fedavg / iid\)",
    "attack.adversaries=9": r"attack.adversaries=9: there are 4 clients \(cell none / fedavg / iid\)",
    "model=cnn model.shape=[3]": r".* \(cell none / fedavg / iid\)",
    "rouns=3": r"rouns: no such key \(did you mean rounds\?\).*",
    "evaluate_every=0": r"evaluate_every=0: a matrix needs the test after the last round \(cell .*\)",
    "seed=3": r"seed: is not for a cell; say seeds=\[0,1\] \(cell .*\)",
    "seeds=[]": "seeds: there are none",
    "seeds=[x]": "seeds.*",
    "attacks=3": "attacks=3: must be names, or overrides by name",
    "reference=[local]": "reference: must be an attack and a defence, or null",
    "workers=-1": "workers=-1: must be at least 0",
    "-cn config": "--config-name config: is no matrix: its defaults must begin with matrices",
    "--inot": "unrecognized arguments: --inot; see fedshare matrix --help",
}


@pytest.mark.parametrize("overrides", WRONG)
def test_what_is_wrong_is_one_line_and_creates_nothing(
    overrides: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [overrides] if "{" in overrides else overrides.split()
    assert matrix(tmp_path / "m", *given) == 2
    out, err = capfd.readouterr()
    assert re.fullmatch(f"fedshare: {WRONG[overrides]}\n", err), err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert matrix(tmp_path) == 2
    assert capfd.readouterr().err == f"fedshare: folder={tmp_path}: holds something else than a matrix: name another\n"
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"


def test_a_run_that_halts_is_a_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    attacks = "attacks={none: 'attack=none', huge: 'client.optimizer.lr=1e30'}"
    assert matrix(folder, attacks, "defences=fedavg") == 0
    out = capfd.readouterr().out
    assert "huge / fedavg / iid / seed 0: halted: round 1: 4 of 4 uploads cannot be used" in out
    assert "2 cells, 1 halted; " in out
    assert cells(folder)["huge fedavg"]["halted"].startswith("round 1: 4 of 4")
    assert "| huge | halted |" in (folder / "matrix.md").read_text()
    assert "hatched: a run has halted" in (folder / "matrix.svg").read_text()
    before = times(folder)
    assert matrix(folder, attacks, "defences=fedavg") == 0
    assert times(folder) == before


@pytest.mark.process
def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    played, play = [], crew.play

    def stopped(*arguments: Any) -> Any:
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(arguments)
        return play(*arguments)

    monkeypatch.setattr(crew, "play", stopped)
    assert matrix(tmp_path / "m") == 130
    assert capfd.readouterr().out.endswith("! stopped; the same command goes on with the 2 cells that are left\n")
    before = times(tmp_path / "m")
    assert len(before) == 2
    assert (tmp_path / "m" / "matrix.md").exists()
    monkeypatch.setattr(crew, "play", play)
    assert matrix(tmp_path / "m") == 0
    assert before.items() < times(tmp_path / "m").items()
    assert len(times(tmp_path / "m")) == 4


@dataclass(frozen=True)
class Dead(FedAvg):
    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        os._exit(7)


@dataclass(frozen=True)
class Broken(FedAvg):
    def aggregate(self, state: State, round: int, uploads: dict[int, Payload]) -> State:
        raise ZeroDivisionError("by nothing\nat all")


@pytest.mark.process
def test_a_worker_that_dies_costs_its_cell_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kinds = "dead: 'strategy._target_=test_matrix.Dead', broken: 'strategy._target_=test_matrix.Broken', fedavg: ''"
    assert matrix(tmp_path / "m", "attacks=none", f"defences={{{kinds}}}", "workers=1") == 3
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "fedshare: none / dead / iid / seed 0: its worker process died (exit code 7)"
    assert lines[1].startswith(
        "fedshare: none / broken / iid / seed 0: ZeroDivisionError: by nothing (test_matrix.py, "
    )
    assert lines[2:] == ["fedshare: 2 of 3 cells failed; the same command plays them again"]
    assert list(cells(tmp_path / "m")) == ["none fedavg"]


@pytest.mark.process
def test_a_cell_that_is_late_is_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    late = ["attacks=none", "defences=fedavg", "rounds=100000", "timeout=1", "workers=1"]
    assert matrix(tmp_path / "m", *late) == 3
    said = capfd.readouterr().err.splitlines()[0]
    assert re.fullmatch(
        r"fedshare: none / fedavg / iid / seed 0: no result in timeout=1 s: it was in round \d+", said
    ), said


def test_what_is_asked_for(tmp_path: Path) -> None:
    app = hydra()
    config, folder = wanted(app, "matrix", ["attacks=byzfl,sign_flip", "defences=ditto", "seeds=range(3)", "rounds=7"])
    assert config.attacks == {"byzfl": ["attack='byzfl'"], "sign_flip": ["attack=sign_flip"]}
    assert config.defences == {"ditto": ["strategy='ditto'"]}, "an option of the group"
    assert config.seeds == [0, 1, 2]
    assert config.base[-1] == "rounds=7"
    assert folder == Path("matrices/digits")
    config, folder = wanted(app, "matrix", ["~attacks.none", "+attacks.far='attack=rescale x=2'", "name=mine"])
    assert "none" not in config.attacks
    assert config.attacks.far == ["attack=rescale", "x=2"]
    assert folder == Path("matrices/mine")
    (tmp_path / "mine.yaml").write_text("defaults: [matrix, _self_]\nseeds: [7]\n")
    assert wanted(hydra(str(tmp_path)), "mine", [])[0].seeds == [7]
    assert wanted(hydra(str(tmp_path)), "mine", ["seeds=3"])[0].seeds == [3]


def test_a_dry_run_creates_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert matrix(tmp_path / "m", "-n") == 0
    assert capfd.readouterr().out == "digits: 2 attacks x 2 defences x 1 partitions x 1 seeds, 4 cells\n"
    assert list(tmp_path.iterdir()) == []


def test_the_presets_options_are_there() -> None:
    config, _ = wanted(hydra(), "matrix", [])
    for axis, group in AXES.items():
        for name, overrides in config[axis].items():
            option = overrides[0].removeprefix(f"{group}=").strip("'")
            assert (CONF / group / f"{option}.yaml").is_file(), f"{axis}: {name}"


def test_help_shows_how_to_choose(capfd: pytest.CaptureFixture[str]) -> None:
    assert fedshare("matrix", "--help") == 0
    assert "fedshare matrix attacks=none,sign_flip defences=fedavg,rffl" in capfd.readouterr().out
    assert fedshare("--help") == 0
    assert "matrix  " in capfd.readouterr().out


# Of results


def entry(
    attack: str, defence: str, honest: list[float], seed: int = 0, halted: str | None = None, **row: Any
) -> Entry:
    """Its last client is the adversary, and has nothing."""
    accuracy = {str(client): value for client, value in enumerate([*honest, 0.0])}
    known = {"accuracy_honest": sum(honest) / len(honest), "per_client": {"accuracy": accuracy}, **row}
    result = {"row": {} if halted else known, "clients": len(accuracy), "adversaries": [len(honest)], "halted": halted}
    rest = {"detection": None, "rounds": 9, "bytes_up": 1500, "bytes_down": 500, "seconds": 2.0}
    return Entry(attack, defence, "iid", seed, result | rest)


ENTRIES = [
    entry("none", "a", [0.5, 0.7]),
    entry("none", "a", [0.5, 0.9], seed=1),
    entry("none", "b", [0.6, 0.6], adversaries_removed=1, honest_removed=0),
    entry("none", "b", [0.6, 0.6], seed=1, adversaries_removed=0, honest_removed=1),
    entry("x", "a", [0.1, 0.3], attack_success=0.25),
    entry("x", "a", [0.1, 0.1], seed=1, halted="round 3: no"),
    entry("x", "b", [0.1, 0.1], halted="round 1: no"),
    entry("x", "b", [0.1, 0.1], seed=1, halted="round 1: no"),
]


def test_the_tables_by_hand() -> None:
    assert matrix_markdown(with_fairness(ENTRIES, "none", "a"), "mine").splitlines() == [
        "# mine",
        "",
        "Seeds 0, 1; accuracies are the mean ± the standard deviation over the seeds; a row's best is bold; `-`: not "
        "known, or not defined.",
        "",
        "## iid",
        "",
        "### Accuracy of the honest clients",
        "",
        "|  | a | b |",
        "|---|---:|---:|",
        "| none | **0.650 ± 0.071** | 0.600 ± 0.000 |",
        "| x | 0.200 (1 halted) | halted |",
        "",
        "### Adversaries removed / honest clients removed",
        "",
        "|  | b |",
        "|---|---:|",
        "| none | 0.5 / 0.5 |",
        "",
        "### Success of the attack at honest clients",
        "",
        "|  | a |",
        "|---|---:|",
        "| x | 0.250 |",
        "",
        "8 cells, 16.0 s of one core, 12.0 kB up, 4.0 kB down.",
    ]


def test_fairness_is_among_the_honest_and_against_the_same_partition_and_seed() -> None:
    entries = [
        entry("none", "local", [0.1, 0.2, 0.3]),
        entry("none", "local", [0.3, 0.2, 0.1], seed=1),
        entry("x", "rffl", [0.5, 0.7, 0.6]),
        entry("x", "rffl", [0.5, 0.6, 0.7], seed=1),
        entry("x", "rffl", [0.5, 0.6, 0.7], seed=2),
        entry("x", "fedavg", [0.5, 0.5, 0.5]),
    ]
    found = [judged.fairness for judged in with_fairness(entries, "none", "local")]
    assert found == [None, None, pytest.approx(50), pytest.approx(-100), None, None]


def test_the_csv_has_a_line_a_cell() -> None:
    rows = list(csv.DictReader(matrix_csv(ENTRIES).splitlines()))
    assert len(rows) == 8
    assert (rows[0]["client_0"], rows[0]["client_2"], rows[0]["adversaries"]) == ("0.5", "0.0", "2")
    assert (rows[5]["halted"], rows[5]["accuracy_honest"]) == ("round 3: no", "")


def test_a_cell_in_which_somebody_was_not_tested_is_marked(tmp_path: Path) -> None:
    entries = [entry("x", "a", [0.1, 0.3], untested={"2": "no answer"}), entry("x", "b", [0.1, 0.2])]
    text = matrix_markdown(entries, "mine")
    assert "| x | 0.200! | 0.150 |" in text.replace("**", "")
    assert "`!`: not all clients were tested" in text
    matrix_plot(entries, tmp_path / "a.svg")
    assert ".20!" in (tmp_path / "a.svg").read_text()


def test_who_lies_in_some_cell_is_left_out_of_the_others_of_its_seed() -> None:
    cells = [entry("none", "a", [0.5, 0.7]), entry("x", "a", [0.1, 0.3]), entry("none", "a", [0.5, 0.7], seed=1)]
    cells = [
        replace(cell, result=cell.result | {"adversaries": []}) if cell.attack == "none" else cell for cell in cells
    ]
    found = [cell.values()["accuracy_honest"] for cell in of_the_same_clients(cells)]
    assert found == [pytest.approx(0.6), pytest.approx(0.2), pytest.approx(0.4)]


@pytest.mark.parametrize("attacks", [1, 2, 19])
def test_the_colour_bars_label_is_inside_the_picture(tmp_path: Path, attacks: int) -> None:
    entries = [entry(f"x{number}", "a", [0.1, 0.3]) for number in range(attacks)]
    boxes: list[tuple[float, float, float]] = []
    save = FigureCanvasSVG.print_svg

    def measured(canvas: FigureCanvasSVG, *arguments: Any, **options: Any) -> None:
        save(canvas, *arguments, **options)
        drawn = canvas.figure.axes[-1].yaxis.label.get_window_extent()
        boxes.append((drawn.y0, drawn.y1, canvas.figure.bbox.height))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasSVG, "print_svg", measured)
        matrix_plot(entries, tmp_path / "a.svg")
    ((low, high, height),) = boxes
    assert 0 <= low < high <= height


def test_the_picture_is_the_same_every_time_and_tells_what_halted(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        matrix_plot(ENTRIES, tmp_path / name)
    picture = (tmp_path / "a.svg").read_bytes()
    assert picture == (tmp_path / "b.svg").read_bytes()
    texts = [element.text or "" for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {".65", ".60", ".20", "halt", "iid; hatched: a run has halted", "none", "x", "a", "b"} <= set(texts)
