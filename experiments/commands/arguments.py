"""The commands that argparse parses, and their flags."""

import argparse

import fedshare
from fedshare.experiments.config.own import add_config_dir, add_trust
from fedshare.experiments.options import PASSPHRASE, Parser

EPILOG = """examples:
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
  fedshare peer peers=ring strategy=gossip partition.clients=4 clients_per_round=null folder=runs/B --id 0 --keys keys
  fedshare relay --listen 0.0.0.0:9444 --log log --keys keys
  fedshare gate --listen 0.0.0.0:9443 --keys keys --socket ~/gate
"""


def parser() -> Parser:
    """Return the parser of the whole command line; commands with parsers of their own are only named."""
    made = Parser(
        prog="fedshare",
        description=fedshare.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"fedshare {fedshare.__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    remove = commands.add_parser("remove", help="remove peers from a run without a server, everywhere")
    remove.add_argument("run", help="the folder of one of its running peers, started with --owner owner.pub")
    remove.add_argument(
        "--peer", type=int, metavar="P", action="append", required=True, help="a peer; may be given several times"
    )
    remove.add_argument("--key", metavar="FILE", required=True, help="owner.key, made by `fedshare keys DIR --owner`")
    remove.add_argument("--passphrase", metavar="FILE", nargs="?", const="", help=PASSPHRASE)
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
    commands.add_parser("relay", help="keep the log that puts the rounds of peers in order", add_help=False)
    commands.add_parser("peers", help="show the links of a running peer: who is there, rounds, bytes", add_help=False)
    commands.add_parser("gate", help="share one port among several runs, each with its own server", add_help=False)
    commands.add_parser("flower-run", help="run any Flower app in this process, without Ray", add_help=False)
    commands.add_parser("keys", help="make certificates for a server and its clients, and revoke them", add_help=False)
    commands.add_parser("admin", help="send commands to a running server, or delete clients' memories", add_help=False)
    commands.add_parser("doctor", help="diagnose a deployment", add_help=False)
    return made
