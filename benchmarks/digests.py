"""Record what every strategy computes on digits, and compare it with an earlier record.

    python benchmarks/digests.py record before.json      # at one commit
    python benchmarks/digests.py compare before.json     # at another: names what differs; exit status 1 if any

For each strategy in experiments/conf: the digest chain and the bytes of each row of three rounds, with workers=0, with
workers=2, and with `--deployed` over gRPC as well; for onebyte the ledger's digest too. `--package FOLDER` runs the
fedshare in that folder, so that one script serves two commits.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUN = ["data=digits", "partition.clients=5", "clients_per_round=4", "rounds=3", "train_examples=400", "tracking=none"]
OWN = {  # required by a strategy, or needed for an effect within three rounds
    "bulyan": ["strategy.rule.f=0"],
    "cfl": ["strategy.eps1=9", "strategy.eps2=0.01", "strategy.warmup=1"],
    "fedper": ["peft=personal_head"],
    "fedrep": ["peft=personal_head"],
    "krum": ["strategy.rule.f=0"],
    "multi_krum": ["strategy.rule.f=0"],
    "nnm": ["strategy.rule.f=1", "strategy.rule.then.f=1"],
    "trimmed_mean": ["strategy.rule.f=1"],
    "rffl": ["strategy.warmup=2"],
    "rffl_plus": ["strategy.warmup=2"],
}
MORE = {  # besides the strategies: cases that use other code paths
    "fedavg-label-flip": ["strategy=fedavg", "attack=label_flip", "attack.adversaries=2"],
    "fedavg-alie": ["strategy=fedavg", "attack=alie", "attack.adversaries=2"],
    "rffl-rider": ["strategy=rffl", "attack=rider_delta", "attack.adversaries=1"],
    "onebyte-sign-flip": ["strategy=onebyte", "attack=sign_flip", "attack.adversaries=1"],
    "onebyte-stochastic": ["strategy=onebyte", "strategy.rounding=stochastic", "strategy.probes=20"],
    "ditto-personal-head": ["strategy=ditto", "peft=personal_head"],
    "finetune-personal-head": ["strategy=finetune", "peft=personal_head"],
    "fedavg-unseen": ["strategy=fedavg", "unseen=1", "validation=0.2"],
    "fedcac-cnn": ["strategy=fedcac", "model=cnn"],
}
TIMES = ("seconds",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--package", type=Path, default=ROOT, help="the folder of the fedshare that is run")
    parser.add_argument("--deployed", action="store_true", help="over gRPC, too")
    parser.add_argument("--only", help="strategies, with commas")
    options = parser.parse_args()
    names = sorted(path.stem for path in (options.package / "experiments/conf/strategy").glob("*.yaml"))
    runs = {name: [f"strategy={name}", *OWN.get(name, [])] for name in names} | MORE
    if options.only:
        runs = {name: runs[name] for name in options.only.split(",")}
    before = json.loads(options.file.read_text()) if options.action == "compare" else {}
    found: dict[str, Any] = {}
    different = 0
    for name, overrides in runs.items():
        found[name] = {}
        for mode in ("workers=0", "workers=2", *(["deployed"] if options.deployed else [])):
            if before and mode not in before.get(name, {}):
                print(f"{name} {mode}: not in {options.file}", flush=True)
                continue
            found[name][mode] = record = one(options.package, overrides, mode)
            if options.action == "record":
                options.file.write_text(json.dumps(found, indent=1))
            change = unlike(before[name][mode], record) if before else ""
            different += bool(change)
            print(f"{name} {mode}: {change or ('equal' if before else record['rows'][-1]['digest'][:12])}", flush=True)
    print(f"{different} of {sum(map(len, found.values()))} differ" if before else f"recorded in {options.file}")
    return int(different > 0)


def one(package: Path, overrides: list[str], mode: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        program, env = [sys.executable, "-m", "fedshare"], {**os.environ, "PYTHONPATH": str(package)}
        env |= {"OMP_NUM_THREADS": "1", "FEDSHARE_STATE": f"{temporary}/state", "PYTHONSAFEPATH": "1"}
        if mode == "deployed":
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{probe.getsockname()[1]}"
            config = [*RUN, *overrides, "workers=0"]
            command = [*program, "server", *config, "--listen", address, f"folder={folder}"]
            server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            clients = subprocess.Popen(
                [*program, "client", address, "--id", "0,1,2,3,4", "--gpu", "none"],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                said, _ = server.communicate(timeout=900)
                if server.returncode == 0:
                    clients.wait(60)
            finally:
                for process in (server, clients):
                    process.kill() if process.poll() is None else None
            if server.returncode:
                return {"rows": [{"digest": f"exit {server.returncode}: {said[-300:]}"}]}
        else:
            command = [*program, "run", *RUN, *overrides, mode, f"folder={folder}"]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
            if done.returncode:
                return {"rows": [{"digest": f"exit {done.returncode}: {done.stderr[-300:]}"}]}
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        record: dict[str, Any] = {"rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows]}
        if (ledger := folder / "ledger").exists():
            files = [ledger] if ledger.is_file() else sorted(path for path in ledger.rglob("*") if path.is_file())
            record["ledger"] = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        return record


def unlike(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the first difference between two records; "" if there is none."""
    if len(before["rows"]) != len(after["rows"]):
        return f"{len(before['rows'])} rows before, {len(after['rows'])} after: {after['rows'][-1]}"
    for old, new in zip(before["rows"], after["rows"], strict=True):
        if keys := sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)):
            shown = "; ".join(f"{key} {str(old.get(key))[:60]} -> {str(new.get(key))[:60]}" for key in keys[:4])
            return f"round {old.get('round')}: {shown}"
    return "" if before.get("ledger") == after.get("ledger") else "the ledgers differ"


if __name__ == "__main__":
    sys.exit(main())
