"""Everything of flwr that is not in its public interface: the one place where its next release may break us."""

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo as NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1  # Flower's number of the server
RAISED = 2  # Flower's error code of a ClientApp that raised
UNAVAILABLE = 5  # and of a node that is not there


def enter_run(run_id: int = 1) -> Run:
    """Be, in this process, the server of a run: Flower's messages ask who makes them."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE, 1
    return Run.create_empty(run_id)


def names_of(grid: Grid) -> dict[int, str]:
    """The names under which nodes are registered."""
    return {node.node_id: node.name for node in grid.get_nodes()}


def named(node: int, name: str) -> NodeInfo:
    return NodeInfo(node_id=node, name=name)


def number(message: Message, id: str) -> None:
    """Give a message its id, as a SuperLink would."""
    message.metadata.__dict__["_message_id"] = id


def received(metadata: Metadata, content: RecordDict | None, error: Error | None) -> Message:
    """A message as its receiver gets it."""
    if error is not None:
        return Message(metadata=metadata, error=error)  # type: ignore[call-overload]
    return Message(metadata=metadata, content=content)  # type: ignore[call-overload]


def records_to_bytes(records: RecordDict) -> bytes:
    data: bytes = recorddict_to_proto(records).SerializeToString()
    return data


def records_from_bytes(data: bytes) -> RecordDict:
    return recorddict_from_proto(RecordDictProto.FromString(data))
