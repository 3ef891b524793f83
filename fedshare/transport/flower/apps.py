"""Our one ServerApp and our one ClientApp: every strategy, on whatever brings them Flower's messages."""

import threading
from collections.abc import Callable

from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedshare._proto.payload_pb2 import Initial, Invitation, Request
from fedshare.machine.files import state_folder
from fedshare.network import Purpose
from fedshare.population import Population
from fedshare.transport.flower.inprocess import ask
from fedshare.transport.flower.participant import Participant, Terms
from fedshare.transport.flower.records import unwrap, wrap

# From run config and node config, which is this host's alone: the text to agree on, and everyone who may take part.
Build = Callable[[UserConfig, UserConfig], tuple[str, Population]]


def server_app(serve: Callable[[Grid, UserConfig], None]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context.run_config)

    return app


class _OneLineErrors(ClientApp):
    """Says on Flower's nodes what failed in the words that it has on our own Grids."""

    def __call__(self, message: Message, context: Context) -> Message:
        return ask(super().__call__, message, context)


def client_app(build: Build) -> ClientApp:
    """`build` is called once a process and config: a process that lives on keeps its model, its data and its device."""
    app = _OneLineErrors()
    here: dict[str, Participant] = {}
    lock = threading.Lock()

    def participant(context: Context) -> Participant:
        device = str(context.node_config.get("device", "cpu"))
        own: UserConfig = {name: v for name, v in context.node_config.items() if name in ("data", "device", "weights")}
        key = repr((sorted(context.run_config.items()), sorted(own.items())))
        with lock:
            if key not in here:
                here.clear()  # one config at a time: a client that stays for many runs would hold all their models
                text, population = build(context.run_config, own)
                given = context.node_config.get("state-dir")
                here[key] = Participant(
                    population,
                    Terms.of(text, population),
                    state_folder(str(given) if given else None),
                    device=str(context.node_config.get("place", device)),
                    threads=int(context.node_config.get("threads", 1)),
                )
            return here[key]

    def client(context: Context) -> int:
        return int(context.node_config["partition-id"])

    @app.query("attend")
    def attend(message: Message, context: Context) -> Message:
        invitation = Invitation.FromString(unwrap(message.content)[0])
        attendance = participant(context).attend(client(context), invitation)
        return Message(wrap(attendance.SerializeToString()), reply_to=message)

    @app.query("initial")
    def begin(message: Message, context: Context) -> Message:
        head, tensors = unwrap(message.content)
        attendance = participant(context).begin(client(context), Initial.FromString(head), tensors)
        return Message(wrap(attendance.SerializeToString()), reply_to=message)

    def answer(purpose: Purpose, message: Message, context: Context) -> Message:
        head, tensors = unwrap(message.content)
        reply, upload = participant(context).answer(client(context), purpose, Request.FromString(head), tensors)
        return Message(wrap(reply.SerializeToString(), upload), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(Purpose.TRAIN, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(Purpose.EVALUATE, message, context)

    return app
