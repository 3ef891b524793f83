"""`fedshare server --metrics`: what Prometheus reads is what the run's rows say."""

import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import world
from deployed import Command, Deployment, certificates, eventually, free_port
from fedshare.experiments.cli import main
from fedshare.report.reasons import FAILURES, REFUSALS, failure, refusal
from fedshare.runs import RunFolder
from optional import extra

SMALL = ["data=digits", "model=logistic", "partition.clients=3", "strategy=local", "rounds=100000"]
SMALL += ["client.batch_size=2", "client.epochs=3", "checkpoint_every=3"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


class Page:
    """The samples at an address, as they are now."""

    def __init__(self, address: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        with urllib.request.urlopen(address, timeout=world.PATIENCE) as answer:
            self.text = answer.read().decode()
        self.families = list(text_string_to_metric_families(self.text))
        self.samples = {
            (sample.name.removeprefix("fedshare_"), *sorted(sample.labels.values())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __getitem__(self, name: str | tuple[str, ...]) -> float:
        return self.samples[(name,) if isinstance(name, str) else name]


@pytest.fixture
def deployment(tmp_path: Path, keys: Path) -> Iterator[Deployment]:
    with Deployment(tmp_path, keys, *SMALL) as made:
        yield made


def reads(server: Command) -> str:
    server.until("metrics at ")
    (address,) = re.findall(r"metrics at (http://127\.0\.0\.1:\d+/metrics)$", server.said, re.MULTILINE)
    return address


@pytest.mark.process
def test_the_page_of_a_deployment_is_what_its_rows_say(deployment: Deployment) -> None:
    extra("prometheus_client")
    server = deployment.server("--metrics", str(free_port()), "--grace", "0")
    address = reads(server)
    assert Page(address)["connections"] == 0, "before anybody is there"
    clients = [deployment.client(id) for id in range(3)]
    deployment.reach(4, server)
    refused = deployment.client(0, *SMALL, "model=mlp")
    assert refused.wait() == 2, refused.said

    clients[1].signal(signal.SIGSTOP)  # and a round waits for it
    run = RunFolder(deployment.run)
    eventually(lambda: Page(address)["round"] == Page(address)["rounds_total"] == len(run.rows()), "a round that waits")
    page, rows = Page(address), run.rows()
    last = rows[-1]
    for way in ("up", "down"):
        assert page["bytes_total", way] == sum(row[f"bytes_{way}"] for row in rows)
    for phase in last["seconds"]:
        assert page["round_seconds_total", phase] == pytest.approx(sum(row["seconds"][phase] for row in rows))
    for over, suffix in (("all", ""), ("mean", "_mean"), ("worst10", "_worst10")):
        assert page["score", *sorted(("accuracy", over))] == last[f"accuracy{suffix}"]
    assert (page["loss", "test"], page["loss", "train"]) == (last["loss"], last["train_loss"])
    assert (page["clients", "trained"], page["clients", "dropped"], page["clients", "absent"]) == (3, 0, 0)
    assert (page["connections"], page["clients_present"], page["rounds_planned"]) == (3, 3, 100000)
    assert page["checkpoint_round"] == len(rows) // 3 * 3
    assert 0 <= page["checkpoint_age_seconds"] < world.PATIENCE
    assert page["refusals_total", "config"] >= 1
    assert sum(value for name, value in page.samples.items() if name[0] == "client_failures_total") == 0
    assert str(deployment.run) in page.text
    shown = {sample.name for family in page.families for sample in family.samples}
    ours = {name for name in shown if name.startswith("fedshare_") and not name.endswith("_created")}
    docs = (world.ROOT / "docs" / "deployment.md").read_text()
    assert ours == set(re.findall(r"^\| `(fedshare_\w+)", docs, re.MULTILINE)), "what the documentation lists"
    assert "process_open_fds" in shown

    clients[1].kill()
    eventually(lambda: Page(address)["connections"] == 2, "who was killed to be gone")
    deployment.reach(len(rows) + 3, server)
    page = Page(address)
    assert page["client_failures_total", "away", "train"] >= 1
    assert page["clients_present"] == 2
    failed = {name[1:] for name, value in page.samples.items() if name[0] == "client_failures_total" and value}
    assert failed <= {("away", "train"), ("away", "test"), ("late", "train")}
    server.signal(signal.SIGTERM)
    assert server.wait() == 130, server.said


def test_a_server_that_goes_on_shows_the_round_before_and_counts_anew(tmp_path: Path) -> None:
    extra("prometheus_client")
    from fedshare.experiments.hosts.prometheus import Exporter

    (tmp_path / "metrics.jsonl").write_text(
        '{"round": 7, "clients": [0, 2], "dropped": {"1": "no answer"}, "accuracy": 0.5, "bytes_up": 9}\n'
    )
    exporter = Exporter()
    exporter.start({"rounds": 9}, "name", None, tmp_path)
    page = Page(exporter.listen("0"))
    exporter.close()
    assert (page["round"], page["rounds_planned"], page["checkpoint_round"]) == (7, 9, 0)
    assert (page["clients", "trained"], page["clients", "dropped"], page["score", "accuracy", "all"]) == (2, 1, 0.5)
    assert (page["rounds_total"], page["bytes_total", "up"], page["client_failures_total", "late", "train"]) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize("given", ["host", "127.0.0.1:99999", ":x", "127.0.0.1:http"])
def test_an_address_that_is_none_is_bad_input(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    extra("prometheus_client")
    with pytest.raises(SystemExit, match="2"):
        main(["server", *SMALL, "--listen", "127.0.0.1:0", "--metrics", given])
    line = f"fedshare: --metrics {given}: must be [HOST:]PORT, such as 9464 or 0.0.0.0:9464\n"
    assert capsys.readouterr().err == line


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    extra("prometheus_client")
    from fedshare.experiments.hosts.prometheus import Exporter

    first = Exporter()
    port = first.listen("0").rpartition(":")[2].removesuffix("/metrics")
    with pytest.raises(SystemExit, match="2"):
        main(["server", *SMALL, "--listen", "127.0.0.1:0", "--metrics", port])
    first.close()
    assert capsys.readouterr().err == f"fedshare: --metrics {port}: cannot listen there: Address already in use\n"


def test_without_the_extra_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "fedshare.experiments.hosts.prometheus", raising=False)
    with pytest.raises(SystemExit, match="2"):
        main(["server", *SMALL, "--listen", "127.0.0.1:0", "--metrics", "0"])
    line = "fedshare: --metrics needs prometheus-client: pip install 'fedshare[metrics]'\n"
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("no answer in 20 s", "late"),
        ("gone since 30 s ago", "away"),
        ("not connected", "away"),
        ("raised ValueError: no memory", "raised"),
        ("the memory of round 1 is not in /srv/state/1f/client-2 (rounds there: none)", "memory"),
        ("/srv/1f/client-2: cannot be written: No space left on device (round-000002); its memory is safe", "disk"),
        ("params: head.weight holds NaN or infinity", "unusable"),
        ("params: head.weight has shape [1], not [2]", "unusable"),
        ("claims 0 examples, not 1 to 5", "unusable"),
        ("groups: lacks params", "unusable"),
        ("anything that somebody may say", "other"),
    ],
)
def test_failures_are_of_a_few_kinds(reason: str, kind: str) -> None:
    assert failure(reason) == kind
    assert kind in FAILURES


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("client 0 was refused: its certificate is client 1's, but it says that it is client 0", "certificate"),
        ("client 0 was refused: it runs fedshare 0.1 (stream 1), the server fedshare 0.2 (stream 1)", "version"),
        ("client 0 was refused: its config is 1f2e, the server's 8c07", "config"),
        ("its config has the digest 1f2e, the server's 8c07", "config"),
        ("client 7 was refused: there are 3 clients, 0 to 2", "client"),
        ("it starts from no weights, the server from those with 77ab", "weights"),
        ("it has 7 training examples; allowed are 1 to 5", "data"),
        ("it says that it has 7 training examples; by the server's count it has 5", "data"),
        ("it joined this run with 7 test examples, and has 9 now", "data"),
        ("ipv4:127.0.0.1:3 sent no greeting", "malformed"),
        ("the TLS handshake failed: its certificate has expired", "handshake"),
        ("client 3 was refused: the operator has banned it: its config is odd", "banned"),
        ("any other", "other"),
    ],
)
def test_refusals_are_of_a_few_kinds(reason: str, kind: str) -> None:
    assert refusal(reason) == kind
    assert kind in REFUSALS
