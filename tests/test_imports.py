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
    # The core.
    "errors": set(),
    "machine": {"machine", "errors"},
    "seeds": {"errors"},
    "tensors": set(),
    "state": {"tensors"},
    "payload": {"tensors"},
    "weights": {"errors", "machine", "tensors"},
    "tasks": {"tasks", "data.dataset", "errors", "tensors"},
    "training": {"training", "data.dataset", "errors", "machine", "seeds", "state", "tasks", "tensors"},
    "client": {"data.dataset", "errors", "payload", "seeds", "state", "tasks", "tensors", "training"},
    "forms": {"forms", "_proto", "errors", "machine", "payload", "tensors"},
    "strategy": {"client", "forms", "payload", "state", "tensors"},
    "network": {"client", "payload", "seeds", "state", "strategy"},
    "population": {
        *("population", "client", "data.dataset", "data.partition", "errors", "machine", "network", "payload", "seeds"),
        *("state", "strategy", "tasks", "tensors", "training", "weights"),
    },
    "rounds": {"rounds", "errors", "machine", "network", "payload", "seeds", "state", "strategy", "tasks", "tensors"},
    "pretrain": {"client", "errors", "seeds", "state", "tasks", "tensors", "training"},
    # Beside it.
    "data": {"data", "errors", "machine", "seeds", "tensors", "weights"},
    "models": {"models", "errors", "machine", "weights"},
    "peft": {"peft", "errors", "training.parts"},
    "rules": {"rules", "errors", "forms", "machine", "seeds", "tensors"},
    "directions": {"directions", "machine"},
    "ledger": {"ledger", "directions", "errors", "machine", "payload", "seeds", "state", "tensors"},
    "strategies": {
        *("strategies", "client", "directions", "errors", "forms", "ledger", "payload", "rules", "seeds", "state"),
        *("strategy", "tensors"),
    },
    "attacks": {
        *("attacks", "client", "data.dataset", "errors", "forms", "machine", "network", "payload", "seeds", "state"),
        *("strategy", "tensors"),
    },
    "peers": {
        "peers",
        "client",
        "directions",
        "errors",
        "forms",
        "ledger",
        "network",
        "payload",
        "rounds.account",
        "seeds",
        "state",
        "strategy",
        "tensors",
    },
    "links": {"links", "errors", "network", "payload", "seeds"},
    "engine": {"engine", "data.dataset", "errors", "seeds", "tasks", "tensors", "training"},
    "simulation": {
        *(
            "simulation",
            "client",
            "data.dataset",
            "engine",
            "errors",
            "machine",
            "network",
            "payload",
            "population",
            "seeds",
        ),
        *("state", "tasks", "tensors", "training"),
    },
    "identity": {"identity", "errors", "machine"},
    "relay": {"relay", "errors", "identity", "machine"},
    "_proto": set(),
    "transport": {
        *("transport", "_proto", "errors", "forms", "identity", "machine", "network", "payload", "population", "relay"),
        *("peers.mesh", "state", "tensors"),
    },
    "runs": {"runs", "errors", "identity", "ledger", "machine", "network", "rounds", "state", "tensors"},
    "report": {"report", "errors", "machine", "tasks"},
    "app": {"experiments", "transport"},
    "__main__": {"experiments"},
}
# Third-party packages that stop at one door.
FENCED = {
    "hydra": ("experiments",),
    "hydra._internal": ("experiments.config.application",),
    "omegaconf": ("experiments",),
    "wandb": ("experiments.tracking",),
    "flwr": ("fedshare.transport.flower",),
    "grpc": ("fedshare.transport.mesh", "fedshare.transport.relay", "fedshare.transport.stream"),
    "grpc_health": ("fedshare.transport.mesh", "fedshare.transport.relay", "fedshare.transport.stream"),
    "google": (
        *("fedshare._proto", "fedshare.transport.flower", "fedshare.transport.mesh", "fedshare.transport.relay"),
        "fedshare.transport.stream",
    ),
    "cryptography": (
        "fedshare.identity.authority",
        "fedshare.identity.certificates",
        "fedshare.identity.enrolment",
        "fedshare.identity.identity",
        "fedshare.identity.keys",
        "fedshare.identity.owner",
        "fedshare.identity.pem",
        "fedshare.identity.signing",
    ),
    "matplotlib": ("fedshare.report",),
    "rich": ("fedshare.report", "fedshare.data"),
    "sklearn": ("fedshare.data",),
    "pooch": ("fedshare.data", "fedshare.machine.files"),
    "flwr_datasets": ("fedshare.data.partition",),
    "timm": ("fedshare.models",),
    "transformers": ("fedshare.models", "fedshare.data"),
    "huggingface_hub": ("fedshare.models",),
    "pickle": ("fedshare.data",),
    "opacus": ("fedshare.training.private.privacy",),
    "peft": ("fedshare.peft",),
    "byzfl": ("fedshare.rules.byzfl",),
    "torchmetrics": ("fedshare.tasks.additive",),
    "pandas": ("fedshare.data",),
    "datasets": ("fedshare.data",),
    "greenlet": ("fedshare.engine.batched",),
    "networkx": ("fedshare.peers.graphs",),
    "numba": ("fedshare.directions.kernels",),
    "ray": ("fedshare.simulation.on_ray",),
    "psycopg": ("fedshare.relay.postgres",),
    "zeroconf": ("fedshare.transport.mesh.lan",),
    "prometheus_client": (
        *("experiments.hosts.metrics_page", "experiments.hosts.prometheus", "experiments.hosts.relay_metrics"),
    ),
}


def imports(path: Path, name: str, source: str | None = None) -> list[str]:
    """All that a module imports, wherever in it, as absolute names; what is imported from a module, too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
                if not within(base, ("fedshare",)):  # strategies/ and experiments/, by the names that they are known by
                    base = f"fedshare.{base}"
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def within(name: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def stray(name: str, imported: str) -> str | None:
    """Why a module may not import this, if it may not."""
    if imported.split(".")[0] in ("strategies", "experiments"):
        return f"{name} imports {imported}: import it as fedshare.{imported}"
    for package, doors in FENCED.items():
        if within(imported, (package,)) and not within(name, doors):
            return f"{name} imports {imported}, which belongs to {', '.join(doors)}"
    room = name.removeprefix("fedshare.").split(".")[0]
    inside = imported.startswith("fedshare.") and room != "experiments"
    if inside and not within(imported.removeprefix("fedshare."), CORE[room]):
        return f"{name} may not import {imported}"
    return None


def test_imports_point_one_way() -> None:
    found = [stray(name, imported) for path, name in SOURCES.items() for imported in imports(path, name)]
    assert not (wrong := [line for line in found if line]), "\n".join(wrong)
    assert (
        stray("fedshare.network", "flwr.app")
        == "fedshare.network imports flwr.app, which belongs to " + FENCED["flwr"][0]
    )
    assert stray("fedshare.network", "fedshare.ledger.kept") == "fedshare.network may not import fedshare.ledger.kept"
    assert str(stray("fedshare.app", "experiments.cli")).endswith("import it as fedshare.experiments.cli")


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("fedshare.simulation.trial", "from . import simulation", "fedshare.simulation.simulation"),
        ("fedshare.population.own", "from ..attacks import Attack", "fedshare.attacks.Attack"),
        ("fedshare.population.own", "from .. import attacks", "fedshare.attacks"),
        ("fedshare.population.__init__", "from .own import Declared", "fedshare.population.own.Declared"),
        ("fedshare.network", "def late():\n    from fedshare import ledger", "fedshare.ledger"),
        ("fedshare.network", "class Late:\n    from .ledger import kept", "fedshare.ledger.kept"),
        ("fedshare.network", "def late():\n    import flwr.app", "flwr.app"),
        ("experiments.config.build", "from . import compose", "fedshare.experiments.config.compose"),
        ("strategies.cfl", "from .fedavg import FedAvg", "fedshare.strategies.fedavg.FedAvg"),
    ],
)
def test_relative_and_late_imports_are_seen(name: str, source: str, expected: str) -> None:
    path = Path(name.replace(".", "/") + ".py")
    assert imports(path, name.removesuffix(".__init__"), source) == [expected]


def reached(start: str) -> set[str]:
    """All modules of ours that come with `start`."""
    paths = {name if within(name, ("fedshare",)) else f"fedshare.{name}": path for path, name in SOURCES.items()}
    found, waiting = set[str](), [start]
    while waiting:
        name = waiting.pop()
        while name not in paths and "." in name:
            name = name.rpartition(".")[0]  # what is imported from a module
        if name in found or name not in paths:
            continue
        found.add(name)
        waiting += [name.rpartition(".")[0], *imports(paths[name], SOURCES[paths[name]])]
    return found


@pytest.mark.parametrize("start", ["fedshare.rounds", "fedshare.simulation.trial", "fedshare.simulation"])
def test_the_core_knows_no_attack_no_ledger_and_no_transport(start: str) -> None:
    known = reached(start)
    assert {"fedshare.client", "fedshare.strategy", "fedshare.network", "fedshare.forms.form"} <= known
    beyond = ("attacks", "ledger", "directions", "transport", "forms.wire", "_proto", "strategies", "experiments")
    assert not [name for name in known if within(name, tuple(f"fedshare.{room}" for room in beyond))]
    assert (start == "fedshare.rounds") == ("fedshare.simulation" not in known)


def test_no_module_imports_itself_by_others() -> None:
    """Neither at its beginning nor late: a circle is two files that are one."""
    paths = {name if within(name, ("fedshare",)) else f"fedshare.{name}": path for path, name in SOURCES.items()}
    known: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = set()
        for imported in imports(path, SOURCES[path]):
            while imported not in paths and "." in imported:
                imported = imported.rpartition(".")[0]
            found.add(imported)
        known[name] = found & paths.keys() - {name}
    while free := [name for name, needs in known.items() if not needs & known.keys()]:
        for name in free:
            del known[name]
    while free := [name for name in known if not any(name in needs for needs in known.values())]:
        for name in free:
            del known[name]
    assert not known, f"a circle of imports: {sorted(known)}"


def test_few_modules_lie_loose() -> None:
    loose = {path.stem for path in (world.ROOT / "fedshare").glob("*.py")} - {"__init__", "__main__", "app"}
    assert len(loose) <= 14, sorted(loose)


@pytest.mark.process
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
