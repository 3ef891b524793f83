"""The `fedshare` command. Subcommands import what they need when called, so that help is fast."""

import argparse
import sys
from typing import TYPE_CHECKING

from fedshare.errors import UserError, exit_status
from fedshare.experiments.commands.arguments import parser
from fedshare.experiments.config.own import importable
from fedshare.machine.extras import root_cause

if TYPE_CHECKING:
    from fedshare.experiments.config.trust import Trust


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
    options = parser().parse_args(arguments)
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
    if options.command == "remove":
        from fedshare.experiments.commands.passphrase import passphrase
        from fedshare.experiments.commands.remove import remove

        remove(options.run, options.peer, options.key, passphrase(options.passphrase))
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
