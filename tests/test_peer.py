"""`fedshare peer`: what it refuses, and what it leaves."""

import importlib.util
import json
import signal
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

import world
from deployed import Command, free_port
from fedshare.experiments.cli import main
from fedshare.experiments.hosts.voice import ENTRY, Signed
from fedshare.experiments.hosts.written import Written
from fedshare.identity import owner
from fedshare.identity.keys import make as keys_of_peers
from fedshare.identity.signing import Signer, Verifier, signed_part
from fedshare.ledger.entries import Entries, TwoThings
from fedshare.network import Purpose
from fedshare.payload import Payload
from fedshare.runs import RunFolder, checkpoint
from fedshare.simulation.peers import Player
from fedshare.state import digests

RUN = bytes(range(32))
SMALL = ["strategy=gossip", "peers=ring", "data=digits", "model=logistic", "partition.clients=4"]
USUAL = [*SMALL, "clients_per_round=null", "--listen", "127.0.0.1:0", "--id", "1"]


def script(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, world.ROOT / "benchmarks" / f"{name}.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--id", "4"], "--id 4: must be from 0 to 3, for the run has 4 peers"),
        (["peers=none"], "peers: `fedshare peer` takes a graph, such as peers=ring"),
        (["clients_per_round=2"], "clients_per_round=2: every peer takes part in every round: clients_per_round=null"),
        (["engine=batched"], "engine=batched: is for simulations; peers train by plain"),
        (["links=churn"], "links: is for simulations; between processes it must be links=none"),
        (["attack=sign_flip"], "attack: is for simulations; between processes it must be attack=none"),
        (["patience=3", "validation=0.2"], "patience=3: peers would end after different rounds; it must be null"),
        (["addresses=[localhost:1]"], "addresses: must have one HOST:PORT for each of the 4 peers, in their order"),
        (["--listen", "0.0.0.0:9000"], "0.0.0.0:9000: off this machine it takes TLS"),
        (["strategy=onebyte", "peers.flood.loss=0.5"], "peers.flood.loss=0.5: is for simulations"),
        (["--wait", "-1"], "--wait -1: must be at least 0"),
        (["--known", "a.example.org"], "'a.example.org': an address is HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_and_nothing_is_made(
    tmp_path: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["peer", *USUAL, f"folder={tmp_path / 'run'}", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert reason in line
    assert not (tmp_path / "run").exists()


def test_a_folder_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["peer", *USUAL])
    assert ended.value.code == 2
    assert "folder: required: folder=FOLDER, where the same command finds the run again" in capsys.readouterr().err


def test_what_was_trained_before_a_crash_is_not_trained_again(tmp_path: Path) -> None:
    population = world.build("scaffold" if "scaffold" in world.STRATEGIES else "onebyte")
    strategy = population.strategy
    state = strategy.init(population.scratch.initial, population.clients)
    download = strategy.download(state, 1, Purpose.TRAIN)
    assert download
    first = Written(Player(population, 1), tmp_path / "upload")
    upload = first(Purpose.TRAIN, 1, download)

    class Broken(Player):
        def __call__(self, purpose: Purpose, round: int, download: Payload) -> Payload:
            raise AssertionError("trains again")

    again = Written(Broken(population, 1), tmp_path / "upload")
    repeated = again(Purpose.TRAIN, 1, download)
    assert digests(dict(repeated.tensors)) == digests(dict(upload.tensors))
    assert repeated.metrics == upload.metrics
    assert digests(again.state) == digests(first.state)
    with pytest.raises(AssertionError, match="trains again"):
        again(Purpose.TRAIN, 2, download)
    path = tmp_path / "upload"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="trains again"):
        again(Purpose.TRAIN, 1, download)


def voice(me: int, folder: Path, said: list[str]) -> Signed:
    public = lambda peer: Signer.unprotected(f"peer {peer}").public if peer < 4 else None  # noqa: E731
    return Signed(RUN, me, Signer.unprotected(f"peer {me}"), public, folder, said.append)


def test_two_signed_statements_of_one_round_are_kept_as_proof(tmp_path: Path) -> None:
    said = list[str]()
    liar, other = voice(2, tmp_path, []), voice(1, tmp_path / "proofs", said)
    entries = Entries.empty(4, 2, 64)
    entries.say(3, 2, b"ab" + liar.sign(3, b"ab"))
    second = Entries.empty(4, 2, 64)
    second.say(3, 2, b"xy" + liar.sign(3, b"xy"))
    with pytest.raises(TwoThings) as found:
        entries.hear(second.pack(second.names()), 3, other.genuine)
    other.doubt(0, found.value)
    assert said[0] == "a message of peer 0 was not used: peer 2 said two things in round 3"
    assert said[1].startswith("peer 2 has signed two things in round 3: ")
    proof = json.loads((tmp_path / "proofs" / "peer-2-round-3.json").read_text())
    key = Verifier(bytes.fromhex(proof["key"]))
    for one, codes in zip(proof["said"], (b"ab", b"xy"), strict=True):
        assert bytes.fromhex(one["codes"]) == codes
        part = signed_part(bytes.fromhex(proof["run"]), proof["peer"], proof["round"], proof["round"], ENTRY, codes)
        assert key.accepts(part, bytes.fromhex(one["signature"]))


def test_an_entry_is_genuine_only_of_its_peer_round_and_run(tmp_path: Path) -> None:
    one, other = voice(2, tmp_path, []), voice(1, tmp_path, [])
    signature = one.sign(3, b"ab")
    assert other.genuine(3, 2, b"ab" + signature)
    assert not other.genuine(4, 2, b"ab" + signature)
    assert not other.genuine(3, 1, b"ab" + signature)
    assert not other.genuine(3, 2, b"ax" + signature)
    assert not other.genuine(3, 7, b"ab" + signature)  # of whom nobody has heard
    assert not Signed(bytes(32), 1, other.signer, other.public, tmp_path, print).genuine(3, 2, b"ab" + signature)


@pytest.mark.process
@pytest.mark.parametrize(
    "overrides",
    [["peers=ring"], ["strategy=gossip", "peers=ring"], ["strategy=fedcac", "peers=full"]],
    ids=["onebyte", "gossip", "fedcac"],
)
def test_processes_have_the_bits_of_the_simulation(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*overrides, "rounds=12", "client.epochs=1"]
    status = script("peers").main([*overrides, "--peers", "4", "--late", "0", "--folder", str(tmp_path)])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "was killed in round" in out
    assert "leaves" in out
    assert " differ" in out
    main_status(["verify", str(tmp_path / "peer-0")])
    if (tmp_path / "peer-0" / "ledger").exists():
        main_status(["replay", str(tmp_path / "peer-0")])


def main_status(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


@pytest.mark.process
def test_a_relay_inside_a_peer_gives_the_bits_of_the_simulation(tmp_path: Path) -> None:
    run = ["strategy=onebyte", "data=digits", "model=logistic", "partition.clients=3", "clients_per_round=null"]
    run += ["rounds=6", "evaluate_every=0"]
    keys_of_peers(tmp_path / "keys", ["localhost"], 3, 30, peers=True)
    flags = ["--keys", "keys", "--wait", str(world.PATIENCE)]
    address = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        inside = ["--with-relay", address]
        peers = [
            stack.enter_context(Command(tmp_path, "peer", *run, *flags, "--id", str(me), *reach, f"folder=peer-{me}"))
            for me, reach in enumerate([inside, ["--relay", address], ["--relay", address]])
        ]
        assert [peer.wait() for peer in peers] == [0, 0, 0], "\n".join(peer.said for peer in peers)
    main_status(["run", *run, "engine=plain", "workers=0", f"folder={tmp_path / 'sim'}"])
    models = {(tmp_path / name / "model.safetensors").read_bytes() for name in ("peer-0", "peer-1", "peer-2", "sim")}
    assert len(models) == 1


def test_an_order_to_remove_a_peer_is_signed_by_the_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner.make(tmp_path, None)
    key = str(tmp_path / "owner" / "owner.key")
    with pytest.raises(SystemExit) as ended:
        main(["remove", str(tmp_path), "--peer", "3", "--key", key])
    assert ended.value.code == 2
    assert "is not the folder of a peer's run: run-name must hold 64 hex digits" in capsys.readouterr().err
    (tmp_path / "run-name").write_text(RUN.hex())
    main_status(["remove", str(tmp_path), "--peer", "3", "--key", key])
    operator = Verifier(owner.public(tmp_path / "owner" / "owner.pub"))
    here = voice(1, tmp_path, [])
    here.operator, here.orders = operator, tmp_path / "removals.json"
    ((peer, signature),) = here.removals()
    assert peer == 3
    assert here.genuine(0, 3, bytes(2) + signature)
    assert not here.genuine(0, 2, bytes(2) + signature)
    here.run = bytes(32)
    assert not here.removals()
    here.operator, here.run = None, RUN
    assert not here.genuine(0, 3, bytes(2) + signature)


@pytest.mark.process
def test_a_peer_whose_state_is_not_that_of_the_others_makes_it_again_from_the_log(tmp_path: Path) -> None:
    run = ["strategy=onebyte", "data=digits", "model=logistic", "partition.clients=3", "clients_per_round=null"]
    run += ["rounds=60", "evaluate_every=0", "--attest-every", "4", "--wait", str(world.PATIENCE)]
    address = f"127.0.0.1:{free_port()}"

    def start(me: int, *flags: str) -> Command:
        return Command(tmp_path, "peer", *run, "--id", str(me), *flags, f"folder=peer-{me}")

    with ExitStack() as stack:
        others = [stack.enter_context(start(0, "--with-relay", address))]
        others.append(stack.enter_context(start(1, "--relay", address)))
        with start(2, "--relay", address) as peer:
            peer.until("ckpt", 5)
            peer.signal(signal.SIGTERM)
            assert peer.wait() == 0, peer.said
        folder = RunFolder(tmp_path / "peer-2")
        last = checkpoint.rounds(folder.checkpoints)[0]
        held = checkpoint.load(folder.checkpoints, last)
        held.server["sums"] += 1
        checkpoint.save(folder.checkpoints, held)
        again = stack.enter_context(start(2, "--relay", address))
        assert again.wait() == 0, again.said
        assert [peer.wait() for peer in others] == [0, 0]
        assert again.said.count("it is made again from the log") == 1
    assert len({(tmp_path / f"peer-{me}" / "model.safetensors").read_bytes() for me in range(3)}) == 1
    main_status(["verify", str(tmp_path / "peer-2")])
