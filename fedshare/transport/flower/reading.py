"""What clients answer, read within limits: nothing of a reply is looked at before its size and its counts are."""

from flwr.app import Message, RecordDict

from fedshare._proto.payload_pb2 import Leaf, Reply
from fedshare.forms import wire
from fedshare.forms.wire import Limits
from fedshare.payload import Payload
from fedshare.transport.flower.records import unwrap


def unwrapped(message: Message, limits: Limits | None) -> tuple[bytes, bytes]:
    """Head and tensors of a reply. Raises ValueError where it is an error, or larger than it may be.

    Over Flower's own transport they have arrived, however long; they are not read.
    """
    head, tensors = unwrap(_content(message))
    if limits and (len(head) > limits.head or len(head) + len(tensors) > limits.body):
        most = f"at most {limits.head} and {limits.body} are taken"
        raise ValueError(f"it sent {len(head)} bytes, and {len(tensors)} of tensors; {most}")
    return head, tensors


def read(message: Message, limits: Limits | None) -> tuple[Payload, dict[str, str]]:
    """An answer, and the digests of its client's memory, by path. Raises ValueError or DecodeError."""
    head, tensors = unwrapped(message, limits)
    reply, most = Reply.FromString(head), limits.leaves if limits else wire.MOST_TENSORS
    if len(reply.memory) > most:
        raise ValueError(f"it holds {len(reply.memory)} digests of its memory; at most {most} are taken")
    if not all(_is_digest(leaf) for leaf in reply.memory):
        raise ValueError("digests of its memory that are none")
    return wire.unpack(reply.upload, tensors, limits), {leaf.path: leaf.sha256.hex() for leaf in reply.memory}


def _content(reply: Message) -> RecordDict:
    if reply.has_error():
        raise ValueError(reply.error.reason or f"Flower's error {reply.error.code}")
    return reply.content


def _is_digest(leaf: Leaf) -> bool:
    return len(leaf.sha256) == 32 and 0 < len(leaf.path) <= 500 and leaf.path.isprintable()
