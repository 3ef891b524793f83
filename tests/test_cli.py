"""The command line: every error is one line that says what is allowed, exits with 2 and creates nothing."""

import os
from pathlib import Path

import pytest
import torch
from test_runs import SMALL, fedshare

import forked
from fedshare.data.dataset import Dataset, Examples
from fedshare.experiments.config.application import CONF
from fedshare.models import MLP
from world import PATIENCE

pytestmark = pytest.mark.long

WRONG = {
    # keys
    "rouns=3": "rouns: no such key (did you mean rounds?); allowed: peft, strategy, data, partition, model,",
    "partition.alpa=1": "partition.alpa: no such key (did you mean alpha?); allowed in partition: clients, alpha,",
    "client.optimizer.momentun=1": "client.optimizer.momentun: no such key (did you mean momentum?); allowed in",
    "+strategy.mu=1": "strategy.mu: no such key; allowed: weighted",
    "+rouns=3": "rouns: no such key (did you mean rounds?); allowed: peft, strategy, data, partition, model,",
    "rounds.x=1": "rounds.x: rounds has no keys of its own",
    "best.x=1": "best.x: best is null; +best.x=... gives it keys of its own",
    "data=torch data.load.train._target_=a.b": "data.load.train._target_: data.load.train is null; +data.load.train._t",
    "data.load={_target_:a.b,n:1}": "data.load.n: no such key; allowed in data.load: none; +data.load=... adds what is",
    "client.optimizer={momentun:1}": "client.optimizer.momentun: no such key (did you mean momentum?); allowed in",
    "hydra.lancher=1": "hydra.lancher: no such key (did you mean launcher?); allowed in hydra: run, sweep,",
    # what is lacking
    "~rounds": "rounds: has no value",
    "~model": "model: has no value",
    "~data.load": "data.load: must say by its _target_ what to make",
    "data.load=null": "data.load: must say by its _target_ what to make",
    "~strategy._target_": "strategy: must say by its _target_ what to make",
    "folder=${strategy.mu}": "Interpolation key 'strategy.mu' not found",
    # keys that lie deeper
    "lr=0.1": "lr: no such key (did you mean client.optimizer.lr?); allowed: peft, strategy,",
    "clients=5": "clients: no such key (did you mean partition.clients or data.clients?); allowed: peft,",
    "epochs=2": "epochs: no such key (did you mean client.epochs?); allowed: peft,",
    "client.lr=0.1": "client.lr: no such key (did you mean client.optimizer.lr?); allowed in client: optimizer,",
    "strategy=onebyte lr=0.1": "lr: no such key (did you mean strategy.lr or client.optimizer.lr?); allowed: peft,",
    # options of a group
    "data=digtis": "data=digtis: no such data (did you mean digits?); allowed: cifar10, cifar100, digits,",
    "strategy=sgd": "strategy=sgd: no such strategy; allowed: bulyan, centred_clipping, cfl, cgsv",
    "strategy=null": "strategy=null: no such strategy; allowed: bulyan, centred_clipping, cfl, cgsv",
    "hydra=null": "hydra=null: no such hydra; allowed: config",
    "hydra/launcher=slrum": "hydra/launcher=slrum: no such hydra/launcher; allowed: basic",
    "hydra/sweeper=grid": "hydra/sweeper=grid: no such hydra/sweeper; allowed: basic",
    "hydra/lancher=basic": "hydra/lancher=basic: no such group (did you mean hydra/launcher?); allowed: attack,",
    # values of another type
    "rounds=many": "rounds=many: value 'many' of type 'str' could not be converted to Integer",
    "partition.alpha=x": "partition.alpha=x: must be a number",
    "strategy.weighted=3": "strategy.weighted=3: must be true or false",
    "client.epochs=many": "client.epochs=many: must be a number",
    "model.hidden=3": "model.hidden=3: must be a list of int",
    "client.optimizer.lr=fast": "client.optimizer.lr=fast: must be a number",
    # values out of range
    "rounds=0": "rounds=0: must be at least 1",
    "clients_per_round=0": "clients_per_round=0: must be at least 1",
    "workers=-1": "workers=-1: must be at least 0",
    "timeout=1e7": "timeout=10000000.0: must be from 1 to 86400",
    "timeout=nan": "timeout=nan: must be from 1 to 86400",
    "partition.alpha=0": "partition: alpha must be > 0, not 0",
    "unseen=20": "unseen=20: must be from 0 to 19, for somebody has to train",
    "partition.clients=4 unseen=5": "unseen=5: must be from 0 to 3, for somebody has to train",
    "partition.clients=0": "partition: clients must be a whole number >= 1, not 0",
    "partition.clients=5000": "partition: 5000 clients with at least 2 examples each need 10000; data=digits has 1442",
    "client.optimizer.lr=-1": "client: optimizer: Invalid learning rate: -1",
    "client.epochs=0": "client: epochs must be above 0, not 0",
    "client.lr_decay=0": "client: lr_decay must be in (0, 1], not 0",
    # things that do not fit together
    "data.classes=7": "data.classes=7: digits has 10",
    "data.classes=null": "data.classes=null: digits has 10; of a regression it is how many numbers",
    "data.classes=3 data.load._target_=test_cli.from_one": "data.classes=3: mine has 4, for its labels are from 1 to 3",
    "model=language_model": "model=language_model: asks for data.vocabulary, which data=digits has not; what ",
    "model=text_cnn data=digits": "model=text_cnn: asks for data.vocabulary, which data=digits has not; what fits: ",
    "model=text_transformer data=mnist": "model=text_transformer: asks for data.vocabulary, which data=mnist has not",
    "device=moon": "device=moon: no such device; allowed: cpu, cuda, mps, xpu, cuda:1, ...",
    "device=gpu": "device=gpu: no such device (did you mean cuda?); allowed: cpu,",
    "device=GPU0": "device=GPU0: no such device (did you mean cuda?); allowed: cpu,",
    "device=cud": "device=cud: no such device (did you mean cuda?); allowed: cpu,",
    "device=meta": "device=meta: ",
    "data.load._target_=os.getcwd": "data.load._target_=os.getcwd: gives a str, not a Dataset",
    "model._target_=test_cli.Frozen": "model: has no parameter to train",
    "model._target_=torch.nn.Lin": "model._target_=torch.nn.Lin: cannot be imported: ",
    "strategy._target_=torch.nn.ReLU": "strategy.weighted: no such key; allowed: inplace",
    "client._target_=math.pi": "client._target_=math.pi: is a float, not a class or a function",
    "seed=0,1": "seed=0,1: several values make a sweep: add -m",
    "rounds": "rounds: is not KEY=VALUE",
    "=3": "=3: is not KEY=VALUE",
    "seed=0,": "seed=0,: cannot be read (mismatched input at its end)",
    "seed=int(x)": "seed=int(x): cannot be read (ValueError while evaluating 'int(x)': ",
    # flags
    "--multi": "unrecognized arguments: --multi; see fedshare run --help",
    "--cfg nope": "argument -c/--cfg: invalid choice: 'nope' (choose from ",
    "--info x=1": "argument -i/--info: invalid choice: 'x=1' (choose from ",
    "--cfg job -m": "argument -m/--multirun: not allowed with argument -c/--cfg",
    "--resolve": "--resolve and --package go with --cfg",
    "--config-dir nowhere": "--config-dir nowhere: no such directory",
    "--config-name mine strategy=mine": "Cannot find primary config 'mine'",
    # sweeps
    "-m seed=0,1 strategy=fedavg,fedagv": "strategy=fedagv: no such strategy (did you mean fedavg?); allowed: bulyan,",
    "-m seed=0 model=null": "model=null: no such model; allowed: cnn,",
    "-m seed=0,1 partition.alpha=1,x": "partition.alpha=x: must be a number (job 1: seed=0 partition.alpha=x)",
    "-m client.optimizer.lr=0.1,-1": "client: optimizer: Invalid learning rate: -1 (job 1: client.optimizer.lr=-1)",
    "-m +strategy.mu=1,2": "strategy.mu: no such key; allowed: weighted (job 0: +strategy.mu=1)",
    "-m model.hidden=[1],3": "model.hidden=3: must be a list of int (job 1: model.hidden=3)",
    "-m tracking._target_=math.pi,math.e": "tracking._target_=math.pi: is a float, not a class or a function (job 0: ",
    "-m device=cpu,meta": "device=meta: ",
    "-m data.classes=7,10": "data.classes=7: digits has 10 (job 0: data.classes=7)",
    "-m partition.clients=4,5000": "partition: 5000 clients with at least 2 examples each need 10000; data=digits",
    "-m partition.alpha=interval(0,1)": "BasicSweeper does not support sweep type : INTERVAL_SWEEP",
    "-m strategy=glob(x*)": "the sweep is empty: one of its globs or ranges holds nothing",
    "-m hydra.verbose=true,false": "hydra.verbose=true,false: sweeping over Hydra's configuration is not supported",
}


def from_one() -> Dataset:
    return Dataset("mine", Examples(torch.ones(9, 1, 8, 8), 1 + torch.arange(9) % 3), 6, 4)


class Frozen(MLP):
    def __init__(self, shape: list[int], classes: int, hidden: list[int]) -> None:
        super().__init__(shape, classes, hidden)
        self.requires_grad_(False)


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_override_is_one_line_and_creates_nothing(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedshare("run", *override.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"fedshare: {WRONG[override]}"), err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_network_and_no_file_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSHARE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FEDSHARE_MIRROR", "http://127.0.0.1:9")  # nobody answers there
    assert fedshare("run", "data=mnist") == 2
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith("fedshare: data.load: ")
    assert "train-images-idx3-ubyte.gz" in err
    assert str(tmp_path / "data") in err
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ("run", f"folder={folder}", "workers=0", *SMALL, "rounds=1")
    assert fedshare(*arguments) == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert fedshare(*arguments) == 2
    assert f"{folder} already holds a run: go on with `fedshare resume {folder}`" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert fedshare("run", f"folder={tmp_path}/file/run", "workers=0", *SMALL, "rounds=1") == 2
    err = capfd.readouterr().err
    assert err.startswith("fedshare: ")
    assert err.count("\n") == 1


def test_more_runs_than_verify_compares_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert fedshare("verify", "A", "B", "C") == 2
    assert capfd.readouterr().err == "fedshare: verify: takes one or two runs, not 3\n"


@pytest.mark.parametrize("command", ["resume", "verify", "ledger", "replay"])
def test_a_folder_without_a_run_is_one_line(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fedshare(command, str(tmp_path)) == 2
    assert capfd.readouterr().err == f"fedshare: {tmp_path}: not a run's folder: it has no config.yaml\n"


def test_a_run_whose_uploads_are_all_bad_halts_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ["client.optimizer.lr=1e30", "workers=0", *SMALL, "rounds=3"]
    assert fedshare("run", f"folder={folder}", *arguments) == 3
    err = capfd.readouterr().err
    assert "round 1: 4 of 4 uploads cannot be used, so the fault is the global model's or everyone's" in err
    assert "holds NaN or infinity" in err
    assert "keeps the rounds before" not in err


def test_a_sweep_leaves_a_folder_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["run", "-m", "strategy=fedavg,local", "seed=0,1", "workers=0", *SMALL, "rounds=1", "hydra.sweep.dir=sweep"]
    assert fedshare(*sweep) == 0
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    assert all((tmp_path / "sweep" / str(job) / "metrics.jsonl").exists() for job in range(4))
    out = capfd.readouterr().out
    assert "job 3: strategy=local seed=1" in out
    assert not (tmp_path / "runs").exists()


def test_a_failing_job_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["run", "-m", "client.optimizer.lr=1e30,0.1", "workers=0", *SMALL, "rounds=1", "folder=sweep"]
    assert fedshare(*sweep) == 3
    assert not (tmp_path / "sweep" / "0" / "model.safetensors").exists()
    assert (tmp_path / "sweep" / "1" / "model.safetensors").exists()
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("fedshare: job 0: round 1: 4 of 4 uploads")
    assert said[1:] == ["fedshare: 1 of 2 jobs failed"]


@pytest.mark.process
def test_a_launchers_processes_are_workers_enough_and_what_they_say_is_heard(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs fedshare[joblib]")
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"folder={tmp_path}/sweep", *SMALL, "rounds=1"]
    command = ["-m", "fedshare", "run", "-m", "client.optimizer.lr=1e30,0.1", *joblib]
    result = forked.run(*command, timeout=PATIENCE)
    assert result.returncode == 3, result.stderr
    said = result.stderr.splitlines()
    assert said[0].startswith("fedshare: job 0: round 1: 4 of 4 uploads")
    assert said[1:] == ["fedshare: 1 of 2 jobs failed"]
    assert "workers: 0" in (tmp_path / "sweep" / "1" / "config.yaml").read_text()


@pytest.mark.parametrize("overrides", [["strategy=mine"], ["--config-name", "exp"]])
def test_own_configs_are_found_whatever_their_folder_is_called(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conf = tmp_path / "Ann's, and Bob's"
    (conf / "strategy").mkdir(parents=True)
    (conf / "strategy" / "mine.yaml").write_text("_target_: fedshare.strategies.fedavg.FedAvg\nweighted: false\n")
    (conf / "exp.yaml").write_text("defaults: [config, override strategy: mine, _self_]\n")
    assert fedshare("run", *overrides, "--config-dir", conf.name, "folder=run", "workers=0", *SMALL, "rounds=1") == 0
    assert "weighted: false" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_folder_and_a_glob_in_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedshare("run", "-m", "strategy=glob(fed*)", "folder=mine", "workers=0", *SMALL, "rounds=1") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "0" / "model.safetensors").exists()


def test_a_run_that_works_in_its_own_folder_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedshare("run", "hydra.job.chdir=true", "folder=run", "workers=0", *SMALL, "rounds=1") == 0
    assert f"{tmp_path}/run: accuracy.svg" in capfd.readouterr().out


def test_cfg_shows_the_config_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fedshare("run", "--cfg", "job", "data=mnist") == 0
    assert "_target_: fedshare.models.CNN" in capfd.readouterr().out
    assert fedshare("run", "--cfg", "job", "data=mnits") == 2
    assert fedshare("demo", "seed=3", "--cfg", "job", "--resolve") == 0
    assert "rounds: 20\nclients_per_round: 10\nseed: 3\n" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_flags_the_groups_and_the_keys(capfd: pytest.CaptureFixture[str]) -> None:
    assert fedshare("run", "--help", "data=mnist") == 0
    out = capfd.readouterr().out
    strategies = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
    assert "fedcac" in strategies
    for line in (
        "-m,--multirun : ",
        f"strategy: {', '.join(strategies)}\n",
        "rounds: 50\n",
        "_target_: fedshare.data.mnist\n",
    ):
        assert line in out


@pytest.mark.process
def test_output_that_is_no_terminal_is_plain_lines(tmp_path: Path) -> None:
    command = ["-m", "fedshare", "run", f"folder={tmp_path}/run", "workers=0", *SMALL, "rounds=2"]
    result = forked.run(*command, timeout=PATIENCE, env=os.environ | {"FORCE_COLOR": ""})
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[1:5]] == ["!", "round", "1", "2"]
    assert result.stderr == ""


def test_wandb_offline_is_one_run_a_job_and_a_group_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wandb = ["tracking=wandb", "tracking.mode=offline", f"tracking.deadline={PATIENCE}", "hydra.sweep.dir=sweep"]
    assert fedshare("run", "-m", "seed=0,1", *wandb, "workers=0", *SMALL, "rounds=1") == 0
    assert capfd.readouterr().out.count("to upload: wandb sync") == 2
    for job in range(2):
        (log,) = (tmp_path / "sweep" / str(job) / "wandb").glob("offline-run-*/*.wandb")
        assert b"sweep" in log.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    same = "hydra.run.dir=runs/now"  # what the clock gives to both
    for _ in range(2):
        assert fedshare("run", same, "workers=0", *SMALL, "rounds=1") == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["now", "now-2"]
    assert all((path / "model.safetensors").exists() for path in (tmp_path / "runs").iterdir())


@pytest.mark.process
def test_too_many_workers_are_not_started(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    most = 4 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4 * (os.cpu_count() or 1)
    few = ["partition.clients=2", "clients_per_round=2", "rounds=1", "evaluate_every=0"]
    assert fedshare("run", f"folder={tmp_path}/run", "workers=5000", *SMALL, *few) == 0
    assert f"warning: workers=5000: starting {most}, four a core\n" in capfd.readouterr().err


IGNORED = {
    "client=adam": "client.optimizer",
    "client.optimizer.lr=0.5 client.lr_decay=0.9": "client.optimizer, client.lr_decay",
    "client.clip_norm=1 schedule=cosine": "client.clip_norm, schedule",
    "client.batch_size=5": "",
    "client=adam strategy=fedavg": "",
    "client=adam peft.local=[head.*]": "",
}


@pytest.mark.parametrize("given", IGNORED)
def test_what_a_strategy_without_an_optimizer_ignores_is_said(
    given: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = ["rounds=1", "workers=0", "partition.clients=2", "model.hidden=[4]", "strategy=onebyte"]
    assert fedshare("run", *small, *given.split(), f"folder={tmp_path / 'run'}") == 0
    line = f"strategy: OneByte steps without an optimizer, so nothing comes of {IGNORED[given]}\n"
    said = capfd.readouterr().out
    assert (line in said) == bool(IGNORED[given])
    assert ("nothing comes of" in said) == bool(IGNORED[given])
