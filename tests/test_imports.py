"""The direction of imports, and what may be imported at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import world

SOURCES = {
    path: str(path.relative_to(world.ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
    for folder in ("fedshare", "strategies", "experiments")
    for path in sorted((world.ROOT / folder).rglob("*.py"))
    if not path.name.endswith("_pb2.py")
}

# Who may import whom inside the project; a name stands for itself and what lies in it.
CORE = {
    "errors": set(),
    "extras": {"errors"},
    "files": {"errors"},
    "threads": {"devices"},
    "seeds": {"errors"},
    "tensors": set(),
    "chain": set(),
    "tasks": {"tasks", "data.dataset", "errors", "tensors"},
    "metrics": {"tasks", "tensors"},
    "batching": set(),
    "rates": {"errors"},
    "fit": {"data.dataset", "scratch", "tasks", "tensors", "training"},
    "best": set(),
    "masks": {"threads"},
    "directions": {"directions", "threads"},
    "ledger": {"ledger", "directions", "errors", "files", "payload", "seeds", "state", "tensors"},
    "mixing": {"masks", "tensors", "threads"},
    "sparse": {"masks", "tensors"},
    "state": {"tensors"},
    "payload": {"tensors"},
    "account": {"payload"},
    "optimizers": {"errors"},
    "parts": set(),
    "peft": {"peft", "errors", "parts"},
    "scratch": {"errors", "parts", "tensors"},
    "noise": {"seeds"},
    "privacy": {"errors", "extras"},
    "clipping": {"data.dataset", "errors", "fit", "scratch", "tasks", "training"},
    "poisson": {
        *("clipping", "data.dataset", "errors", "fit", "noise", "privacy", "scratch", "tasks", "training"),
    },
    "client": {
        *("seeds", "errors", "data.dataset", "metrics", "noise", "payload", "poisson", "privacy", "scratch", "state"),
        *("tensors", "training", "batching", "fit", "tasks"),
    },
    "training": {"batching", "errors", "privacy", "rates"},
    "trial": {"client", "data.dataset", "errors", "fit", "noise", "poisson", "seeds", "simulation.population"},
    "strategy": {"client", "ledger", "payload", "state", "tensors"},
    "network": {"client", "payload", "seeds", "state", "strategy"},
    "influence": {"errors", "payload", "state"},
    "rounds": {
        *("account", "chain", "errors", "influence", "metrics", "network", "payload", "seeds", "state", "strategy"),
        *("tasks", "tensors", "threads"),
    },
    "checkpoint": {"errors", "files", "state"},
    "marks": {"files"},
    "seals": {"errors", "files"},
    "pace": set(),
    "suspension": {"state"},
    "audit": {"errors", "files", "seals", "stream.tally"},
    "control": {"errors"},
    "memories": {"errors", "files"},
    "runs": {"chain", "checkpoint", "errors", "files", "ledger", "marks", "pace", "seals", "state", "tensors"},
    "_proto": set(),
    "wire": {"_proto", "payload", "tensors"},
    "certificates": {"errors"},
    "keys": {"certificates", "errors", "files"},
    "admission": {"certificates", "errors", "files"},
    "enrolment": {"admission", "certificates", "errors", "files", "keys"},
    "owner": {"errors", "files"},
    "devices": {"errors"},
    "stream": {"stream", "_proto", "admission", "certificates", "errors", "files", "keys"},
    "flower": {
        *(
            "flower",
            "_proto",
            "errors",
            "files",
            "memories",
            "network",
            "pace",
            "payload",
            "simulation",
            "state",
            "stream",
            "suspension",
            "tensors",
            "threads",
            "wire",
        ),
    },
    "app": {"experiments", "flower"},
    "data": {"data", "errors", "extras", "files", "seeds", "tensors", "weights"},
    "models": {"models", "errors", "extras", "weights"},
    "weights": {"errors", "files", "tensors"},
    "pretrain": {"client", "errors", "scratch", "seeds", "state", "tasks", "tensors"},
    "attacks": {
        *(
            "attacks",
            "client",
            "data.dataset",
            "errors",
            "extras",
            "network",
            "payload",
            "seeds",
            "state",
            "strategy",
            "tensors",
        ),
        "threads",
    },
    "robustness": {"metrics"},
    "fairness": set(),
    "simulation": {
        *("attacks", "simulation", "client", "data.dataset", "data.partition", "errors", "files", "network", "payload"),
        *("parts", "scratch", "seeds", "state", "strategy", "tasks", "tensors", "threads", "weights"),
    },
    "report": {"report", "best", "errors", "fairness", "files", "metrics"},
    "rules": {"rules", "errors", "extras", "seeds", "tensors", "threads"},
    "strategies": {
        *("strategies", "client", "errors", "masks", "mixing", "payload", "rules", "seeds", "sparse", "state"),
        *("strategy", "tensors", "directions", "ledger"),
    },
    "__main__": {"experiments"},
}
# Third-party packages that stop at one door.
FENCED = {
    "hydra": ("experiments",),
    "omegaconf": ("experiments",),
    "wandb": ("experiments.tracking",),
    "flwr": ("fedshare.flower",),
    "grpc": ("fedshare.stream",),
    "grpc_health": ("fedshare.stream",),
    "google": ("fedshare._proto", "fedshare.stream", "fedshare.flower"),
    "cryptography": ("fedshare.certificates", "fedshare.enrolment", "fedshare.keys", "fedshare.owner"),
    "matplotlib": ("fedshare.report",),
    "rich": ("fedshare.report", "fedshare.data"),
    "sklearn": ("fedshare.data",),
    "pooch": ("fedshare.data", "fedshare.files"),
    "flwr_datasets": ("fedshare.data.partition",),
    "timm": ("fedshare.models",),
    "transformers": ("fedshare.models", "fedshare.data"),
    "huggingface_hub": ("fedshare.models",),
    "pickle": ("fedshare.data",),
    "opacus": ("fedshare.privacy",),
    "peft": ("fedshare.peft",),
    "byzfl": ("fedshare.rules.byzfl",),
    "torchmetrics": ("fedshare.tasks.additive",),
    "pandas": ("fedshare.data",),
    "datasets": ("fedshare.data",),
    "numba": ("fedshare.directions.kernels",),
    "prometheus_client": ("experiments.prometheus",),
}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def within(name: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


@pytest.mark.parametrize("path", SOURCES, ids=SOURCES.values())
def test_imports_point_one_way(path: Path) -> None:
    name = SOURCES[path]
    inside = name.removeprefix("fedshare.")
    room = inside.split(".")[0]
    for imported in imports(path):
        assert imported.split(".")[0] not in ("strategies", "experiments"), "import it as fedshare.strategies"
        for package, doors in FENCED.items():
            if within(imported, (package,)):
                assert within(name, doors), f"{name} imports {imported}, which belongs to {', '.join(doors)}"
        if imported.startswith("fedshare.") and room != "experiments":
            target = imported.removeprefix("fedshare.")
            assert within(target, CORE[room]), f"{name} may not import {imported}"


def test_the_package_and_its_help_load_nothing_but_python() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import fedshare\n"
        "from fedshare.experiments.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print('loaded:', sorted(loaded - sys.stdlib_module_names))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=world.PATIENCE
    )
    assert result.stdout.endswith("loaded: ['fedshare']\n"), result.stdout
    assert "fedshare demo" in result.stdout


def test_every_source_is_in_a_room_of_the_plan() -> None:
    rooms = {name.removeprefix("fedshare").strip(".").split(".")[0] for name in SOURCES.values()}
    assert rooms - {"", "experiments"} <= CORE.keys()
