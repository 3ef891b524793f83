"""The `fedshare` command. Subcommands import what they need when called, so that help is fast."""

import argparse
import sys
from typing import TYPE_CHECKING

import fedshare
from fedshare.errors import UserError, exit_status
from fedshare.experiments.config.own import add_config_dir, add_trust, importable
from fedshare.experiments.options import PASSPHRASE, Parser
from fedshare.machine.extras import root_cause

if TYPE_CHECKING:
    from fedshare.experiments.config.trust import Trust

_EPILOG = """examples:
  fedshare demo
  fedshare run strategy=fedavg data=mnist partition=shards partition.clients=100 rounds=20 seed=0
  fedshare run -m strategy=fedavg,local seed=0,1,2
  fedshare run --cfg job            show the whole config; --info defaults: where it comes from
  fedshare resume runs/A
  fedshare verify runs/A runs/B
  fedshare sign runs/A --key keys/owner/owner.key
  fedshare compare runs/A runs/B runs/C --into clients.svg
  fedshare replay runs/A --round 20 --into round20.safetensors
  fedshare undo runs/A --peer 3 --peer 7 --from-round 10
  fedshare matrix attacks=none,sign_flip defences=fedavg,rffl seeds=0,1 folder=matrices/A
  fedshare pretrain model=vit data=cifar100 epochs=20 folder=backbones/vit-cifar100
  fedshare keys keys --server host.example.org --clients 4
  fedshare keys revoke keys 3
  fedshare server data=mnist partition.clients=4 --listen 0.0.0.0:9443 --keys keys
  fedshare client host.example.org:9443 --keys keys --id 0,1 --gpu auto
  fedshare admin runs/A status
  fedshare gate --listen 0.0.0.0:9443 --keys keys --socket ~/gate
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Exit status: 0 done; 1 a difference was found, or the system failed; 2 bad input; 130 stopped.

    3: the run halted, or a disk is full or cannot be written.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(_dispatch(arguments))
    except UserError as error:
        print(f"fedshare: {error}", file=sys.stderr)
        sys.exit(exit_status(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except ImportError as error:
        print(f"fedshare: cannot be imported: {root_cause(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"fedshare: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(exit_status(error))


def _dispatch(arguments: list[str]) -> int:
    command, *rest = arguments or [""]
    if command in ("run", "demo"):  # hydra parses the rest
        from fedshare.experiments.commands.run import run

        run(rest, "demo" if command == "demo" else "config")
        return 0
    if command == "pretrain":  # here too
        from fedshare.experiments.commands.pretrain import main as pretrain

        pretrain(rest)
        return 0
    if command == "matrix":  # here too
        from fedshare.experiments.commands.matrix import matrix

        matrix(rest)
        return 0
    if command == "keys":
        from fedshare.experiments.commands.keys import keys

        for line in keys(rest):
            print(line)
        return 0
    if command == "admin":
        from fedshare.experiments.commands.admin import admin

        return admin(rest)
    if command in ("server", "client", "gate", "peer", "peers", "relay", "flower-run", "doctor"):
        return _deploy(command, rest)
    options = _parser().parse_args(arguments)
    importable(getattr(options, "config_dir", None))
    if options.command == "resume":
        from fedshare.experiments.running.execute import resume

        resume(options.run, options.rounds, _trusted(options))
        return 0
    if options.command == "export":
        from fedshare.experiments.commands.export import export

        export(options.run, options.file, options.client, _trusted(options))
        return 0
    if options.command in ("ledger", "replay", "undo"):
        return _ledger(options)
    if options.command == "compare":
        from fedshare.experiments.commands.compare import compare

        compare(options.runs, options.into)
        return 0
    if options.command == "sign":
        from fedshare.experiments.commands.passphrase import passphrase
        from fedshare.experiments.commands.signing import sign

        sign(options.run, options.key, passphrase(options.passphrase))
        return 0
    return _verify(options)


def _verify(options: argparse.Namespace) -> int:
    from fedshare.experiments.commands.signing import signatures
    from fedshare.experiments.config.schema import HARMLESS
    from fedshare.experiments.hosts.auditing import audited
    from fedshare.runs import RunFolder, verify

    if len(options.runs) > 2:
        raise UserError(f"verify: takes one or two runs, not {len(options.runs)}")
    folders = [RunFolder.open(path) for path in options.runs]
    same, sentence = verify(folders[0], *folders[1:], harmless=HARMLESS)
    if same:
        same, logged = audited(folders, options.audit)
        sentence = f"{sentence}{logged}" if same else logged
    if same:
        same, signed = signatures(folders, options.key)
        sentence = f"{sentence}{signed}" if same else signed
    print(sentence)
    return 0 if same else 1


def _ledger(options: argparse.Namespace) -> int:
    if options.command == "ledger":
        from fedshare.experiments.commands.ledger_summary import ledger

        ledger(options.run)
        return 0
    from fedshare.experiments.commands.ledgers import replay, undo

    if options.command == "replay":
        return 0 if replay(options.run, options.round, options.into, _trusted(options)) else 1
    undo(options.run, options.peer, options.from_round, options.into, _trusted(options))
    return 0


def _trusted(options: argparse.Namespace) -> "Trust":
    from fedshare.experiments.config.trust import Trust

    return Trust.of(options.trust, options.config_dir)


def _deploy(command: str, arguments: list[str]) -> int:
    from fedshare.experiments.hosts.deploy_options import parser

    options = parser(command).parse_intermixed_args(arguments)
    if command in ("server", "relay"):  # before gRPC is imported
        from fedshare.transport.stream import grpc_log

        with grpc_log.captured():
            if command == "relay":
                from fedshare.experiments.hosts import relay

                return relay.relay(options)
            from fedshare.experiments.hosts import serving

            return serving.server(options)
    from fedshare.experiments.hosts import clients, deploy

    run = {
        "client": clients.client,
        "gate": deploy.gate,
        "peer": deploy.peer,
        "peers": deploy.peers,
        "flower-run": deploy.flower_run,
        "doctor": deploy.doctor,
    }[command]
    return run(options)


def _parser() -> Parser:
    parser = Parser(
        prog="fedshare",
        description=fedshare.__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fedshare {fedshare.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run an experiment, or a sweep with -m", add_help=False)
    commands.add_parser("demo", help="a small run that needs no data, no network and no account", add_help=False)
    resume = commands.add_parser("resume", help="continue a run that was stopped, to the same bits")
    resume.add_argument("run", help="the run's folder")
    resume.add_argument("--rounds", type=int, help="continue to this round instead of the planned one")
    verify = commands.add_parser("verify", help="check whether two runs are equal, and report where they first differ")
    verify.add_argument(
        "runs", nargs="+", metavar="RUN", help="one folder, which is checked against its own record, or two"
    )
    verify.add_argument("--key", metavar="FILE", help="owner.pub: check that they are as signed by this owner")
    verify.add_argument("--audit", metavar="FILE", help="the audit log of the run, if it is stored elsewhere")
    sign = commands.add_parser("sign", help="sign a run, so that others can verify that it was not changed")
    sign.add_argument("run", help="the run's folder")
    sign.add_argument("--key", metavar="FILE", required=True, help="owner.key, made by `fedshare keys DIR --owner`")
    sign.add_argument("--passphrase", metavar="FILE", nargs="?", const="", help=PASSPHRASE)
    compare = commands.add_parser("compare", help="compare the clients' results in several runs")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folders of two or more runs with the same clients")
    compare.add_argument("--into", metavar="FILE", help="output file: NAME.csv, a table, or NAME.svg, a plot")
    export = commands.add_parser("export", help="write a run's whole model to one file, backbone included")
    export.add_argument("run", help="the run's folder")
    export.add_argument("file", help="output file: NAME.safetensors")
    export.add_argument(
        "--client", type=int, help="export the model that this client would use instead of the global one"
    )
    ledger = commands.add_parser("ledger", help="summarise the ledger of a run, if it has one")
    ledger.add_argument("run", help="the run's folder")
    replay = commands.add_parser(
        "replay", help="rebuild the model of any round from the initial one and the run's ledger"
    )
    replay.add_argument("run", help="the run's folder")
    replay.add_argument("--round", type=int, metavar="N", help="the model after this round instead of the last")
    undo = commands.add_parser("undo", help="compute and test the model without the bytes of some peers")
    undo.add_argument("run", help="the run's folder, which is not changed")
    undo.add_argument(
        "--peer",
        type=int,
        metavar="P",
        action="append",
        required=True,
        help="a peer to remove; may be given several times",
    )
    undo.add_argument(
        "--from-round", type=int, metavar="R", default=1, help="remove its bytes from this round on; 1: all of them"
    )
    for command in (replay, undo):
        command.add_argument("--into", metavar="FILE", help="output file for the whole model: NAME.safetensors")
    for command in (resume, export, replay, undo):
        add_config_dir(command)
        add_trust(command)
    commands.add_parser("matrix", help="run attacks against defences, partitions and seeds; one table", add_help=False)
    commands.add_parser("pretrain", help="train a model on all data, for runs to start from", add_help=False)
    commands.add_parser("server", help="run an experiment with clients on other hosts", add_help=False)
    commands.add_parser("client", help="run one client, or all clients of this host", add_help=False)
    commands.add_parser("peer", help="take part in a run without a server, as one of its peers", add_help=False)
    commands.add_parser("peers", help="show the links of a running peer: who is there, rounds, bytes", add_help=False)
    commands.add_parser("relay", help="keep the log that puts the rounds of peers in order", add_help=False)
    commands.add_parser("gate", help="share one port among several runs, each with its own server", add_help=False)
    commands.add_parser("flower-run", help="run any Flower app in this process, without Ray", add_help=False)
    commands.add_parser("keys", help="make certificates for a server and its clients, and revoke them", add_help=False)
    commands.add_parser("admin", help="send commands to a running server, or delete clients' memories", add_help=False)
    commands.add_parser("doctor", help="diagnose a deployment", add_help=False)
    return parser
