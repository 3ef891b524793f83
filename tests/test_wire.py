"""Payloads and Flower messages as bytes: back to the bit, and one line on whatever else arrives."""

import struct
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedshare._proto.payload_pb2 import Contents, Envelope
from fedshare.forms import wire
from fedshare.payload import Payload
from fedshare.transport.flower import private
from fedshare.transport.flower.envelope import LARGE, seal, unseal
from fedshare.transport.flower.grid import reply
from fedshare.transport.flower.records import unwrap, wrap
from fedshare.transport.flower.stream import StreamGrid
from fedshare.transport.stream.mailbox import Response
from fedshare.transport.stream.settings import Settings
from world import PATIENCE

T = TypeVar("T")
DTYPES = list(wire.DTYPES.values())


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(there: Payload, back: Payload) -> None:
    assert list(back.tensors) == list(there.tensors)
    for group, named in there.tensors.items():
        assert list(back.tensors[group]) == list(named)
        for name, tensor in named.items():
            other = back.tensors[group][name]
            assert (other.dtype, other.shape, bits(other)) == (tensor.dtype, tensor.shape, bits(tensor)), name
    pairs = zip(there.metrics.items(), back.metrics.items(), strict=True)
    assert all(a == b and struct.pack("d", x) == struct.pack("d", y) for (a, x), (b, y) in pairs)


def value_or_line(call: Callable[[], T]) -> T | None:
    """What `call` gives; None where it raises a ValueError of one line."""
    line = "one line"
    try:
        return call()
    except ValueError as error:
        line = str(error)
    assert line.isprintable()
    return None


def there_and_back(payload: Payload) -> Payload:
    header, data = wire.pack(payload)
    assert len(data) == payload.nbytes
    return wire.unpack(Contents.FromString(header.SerializeToString()), data)


def random_tensor(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    """Any bits at all: NaNs of every kind among them."""
    count = int(np.prod(shape)) * dtype.itemsize
    flat = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    return flat.to(torch.uint8).view(dtype).view(shape)


# Payloads.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_comes_back_to_the_bit(dtype: torch.dtype) -> None:
    byte = torch.tensor([7], dtype=torch.uint8)  # what comes after it lies askew
    shapes = {"scalar": [], "row": [5], "empty": [0, 3], "deep": [2, 1, 3, 2]}
    tensors = {name: random_tensor(dtype, shape, len(name)) for name, shape in shapes.items()}
    payload = Payload({"params": {"byte": byte, **tensors}})
    assert_same(payload, there_and_back(payload))


def test_views_are_sent_as_what_they_show() -> None:
    base = torch.arange(24, dtype=torch.float32).view(4, 6).requires_grad_()
    views = {"turned": base.t(), "every other": base[:, ::2], "spread": base[0].expand(3, 6), "inner": base[1:3, 2:4]}
    back = there_and_back(Payload({"params": dict(views)}))
    assert all(torch.equal(back.tensors["params"][name], view) for name, view in views.items())


def test_what_arrives_can_be_written_to() -> None:
    header, data = wire.pack(Payload({"params": {"w": torch.zeros(3), "b": torch.zeros(1)}}))
    params = wire.unpack(header, bytes(data)).tensors["params"]
    params["w"].add_(1)
    assert params["b"].item() == 0


@pytest.mark.parametrize(
    "groups", [[], ["a"], ["full", "a", "b"], ["a", "full"], ["a", "full", "b", "full 2"], [""], ["", "full"]], ids=str
)
def test_empty_groups_keep_their_place(groups: list[str]) -> None:
    payload = Payload({group: {"w": torch.ones(2)} if "full" in group else {} for group in groups})
    assert_same(payload, there_and_back(payload))


names = st.text(max_size=8)
tensors_ = st.builds(
    random_tensor, st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 1 << 20)
)
groups_ = st.dictionaries(names.filter(bool), st.dictionaries(names, tensors_, max_size=4), max_size=4)
payloads = st.builds(Payload, groups_, st.dictionaries(names, st.floats(), max_size=4))


@settings(max_examples=200)
@given(payloads)
def test_any_payload_comes_back_to_the_bit(payload: Payload) -> None:
    assert_same(payload, there_and_back(payload))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"params": {"w": torch.ones(2, dtype=torch.complex64)}}, "'w' is torch.complex64, which cannot be sent"),
        ({"params": {"w": torch.ones(2)}, "": {"w": torch.ones(2)}}, "a group without a name must be the first"),
    ],
)
def test_what_cannot_be_sent_is_not(tensors: dict[str, dict[str, Tensor]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        wire.pack(Payload(tensors))


Spoil = Callable[[Contents, bytearray], None]
HUGE = 1 << 63
SPOILS: dict[str, tuple[Spoil, str]] = {
    "too few bytes": (lambda head, data: data.pop(), "want at least 25 bytes, and it has 24"),
    "too many bytes": (lambda head, data: data.append(0), "want 25 bytes, and it has 26"),
    "no bytes": (lambda head, data: data.clear(), "want at least 24 bytes, and it has 0"),
    "no layout": (lambda head, data: head.ClearField("layout"), "want 0 bytes, and it has 25"),
    "type 0": (lambda head, data: setattr(head.layout[0], "dtype", 0), "type number 0, which does not exist"),
    "type 99": (lambda head, data: setattr(head.layout[0], "dtype", 99), "type number 99, which does not exist"),
    "larger": (lambda head, data: head.layout[0].shape.append(2), "want at least 48 bytes"),
    "huge": (lambda head, data: head.layout[0].shape.extend([HUGE, HUGE]), "a shape beyond all memory"),
    "huge and empty": (lambda head, data: head.layout[0].shape.extend([HUGE, 0]), "a shape beyond all memory"),
    "deep": (lambda head, data: head.layout[0].shape.extend([1] * 40), "has 42 dimensions; at most 32 are taken"),
    "one name twice": (
        lambda head, data: setattr(head.layout[1], "name", "w"),
        "'pa\\\\nrams': 'w' stands in it twice",
    ),
    "not a bool": (lambda head, data: data.__setitem__(-1, 2), "other bytes than 0 and 1"),
    "a metric twice": (lambda head, data: head.metrics.extend(list(head.metrics)), "a metric stands in it twice"),
    "many": (lambda head, data: head.layout.extend([head.layout[0]] * 100_000), "100002 tensors; at most 100000"),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILS.values(), ids=SPOILS)
def test_a_header_that_does_not_fit_is_one_line(spoil: Spoil, reason: str) -> None:
    tensors = {"w": torch.ones(2, 3), "mask": torch.tensor([True])}
    header, data = wire.pack(Payload({"pa\nrams": tensors}, {"examples": 3.0}))
    spoil(header, data)
    with pytest.raises(ValueError, match=reason) as caught:
        wire.unpack(header, data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


entries = st.builds(
    lambda group, name, dtype, shape: {"group": group, "name": name, "dtype": dtype, "shape": shape},
    *(names, names, st.integers(0, 12), st.lists(st.integers(0, 3) | st.integers(0, (1 << 64) - 1), max_size=5)),
)


@settings(max_examples=300)
@given(st.lists(entries, max_size=5), st.binary(max_size=64))
def test_any_header_over_any_bytes_is_a_payload_or_one_line(layout: list[dict], data: bytes) -> None:
    header = Contents()
    for entry in layout:
        header.layout.add(**entry)
    if payload := value_or_line(lambda: wire.unpack(header, data)):
        assert payload.nbytes == len(data)


# Flower messages.


def message(content: RecordDict) -> Message:
    private.enter_run()
    return Message(content, 2, "train.special", group_id="7")


def full() -> RecordDict:
    """Arrays on both sides of the border, and all the other kinds of record."""
    numbers = np.random.default_rng(0)
    arrays = {f"a{n}": Array(numbers.integers(0, 256, n, np.uint8)) for n in (0, 1, LARGE, 3 * LARGE)}
    content = RecordDict({"model": ArrayRecord(arrays), "mask": ArrayRecord({"m": Array(np.zeros(LARGE, np.float32))})})
    content["none"] = ArrayRecord()
    content["metrics"] = MetricRecord({"loss": 0.25, "count": 3, "list": [1.5, 2.5]})
    content["config"] = ConfigRecord({"name": "x", "raw": b"\x00\xff" * 4000, "flags": [True, False]})
    return content


def sealed(message: Message) -> bytearray:
    return bytearray(b"".join(seal(message)))


def test_a_message_with_every_record_comes_back() -> None:
    letter = unseal(sealed(message(full())))
    assert (letter.type, letter.group, letter.error) == ("train.special", "7", None)
    assert letter.content is not None
    assert list(letter.content.items()) == list(full().items())


def test_sealing_copies_no_large_array_and_changes_no_message() -> None:
    sent = message(full())
    pieces = seal(sent)
    large = [array.data for record in sent.content.array_records.values() for array in record.values()]
    assert [id(piece) for piece in pieces[1:]] == [id(data) for data in large if len(data) >= LARGE]
    assert len(pieces[0]) < 4 * LARGE
    assert list(sent.content.items()) == list(full().items())


def test_what_many_are_asked_is_written_down_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    write = private.records_to_bytes
    monkeypatch.setattr(private, "records_to_bytes", lambda records: made.append(records) or write(records))
    content = wrap(b"head", bytes(10_000))
    private.enter_run()
    letters = [unseal(sealed(Message(content, node, "train", group_id=str(node)))) for node in (2, 3)]
    assert len(made) == 1
    assert [letter.group for letter in letters] == ["2", "3"]
    assert [unwrap(letter.content) for letter in letters if letter.content] == [(b"head", bytes(10_000))] * 2


@pytest.mark.parametrize("tensors", [b"", bytes(100), bytes(10_000)])
def test_flower_reads_what_we_write_and_we_what_it_does(tensors: bytes) -> None:
    records = RecordDict(dict(wrap(b"head", tensors)))
    records["numbers"] = MetricRecord({"a": 1, "b": [0.5, 1.5], "c": 2**64 - 1})
    records["settings"] = ConfigRecord({"a": True, "b": ["x", "y"], "c": b"z", "d": [b"1"], "e": [False], "f": -1})
    data = recorddict_to_proto(records).SerializeToString()
    assert private.records_from_bytes(data) == recorddict_from_proto(RecordDictProto.FromString(data)) == records


def test_an_error_comes_back() -> None:
    answer = Message(Error(2, "raised KeyError: 'w'"), reply_to=reply(2, "1", "train", "7", RecordDict(), None))
    letter = unseal(sealed(answer))
    assert letter.content is None
    assert letter.error is not None
    assert (letter.error.code, letter.error.reason) == (2, "raised KeyError: 'w'")


def assert_letter_or_line(body: bytes) -> None:
    value_or_line(lambda: unseal(bytearray(body)))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_letter_or_one_line(body: bytes) -> None:
    assert_letter_or_line(body)
    assert_letter_or_line(len(body).to_bytes(4, "little") + body)
    assert_letter_or_line(head_of(Envelope(type="train", content=body)))


def head_of(envelope: Envelope) -> bytes:
    head = envelope.SerializeToString()
    return len(head).to_bytes(4, "little") + head


def small() -> bytearray:
    content = RecordDict({"model": ArrayRecord({"a": Array(np.arange(3)), "b": Array(np.zeros(LARGE, np.uint8))})})
    content["metrics"] = MetricRecord({"loss": 0.25, "list": [1, 2]})
    content["config"] = ConfigRecord({"name": "x", "raw": b"\x00"})
    return sealed(message(content))


def test_a_truncated_message_is_one_line() -> None:
    body = small()
    assert unseal(body).content is not None
    for end in [*range(len(body) - LARGE), len(body) - LARGE // 2, len(body) - 1]:
        with pytest.raises(ValueError, match="a message that cannot be read: "):
            unseal(body[:end])


@settings(max_examples=500)
@given(st.data())
def test_a_message_with_a_bit_turned_is_a_letter_or_one_line(data: st.DataObject) -> None:
    body = small()
    place = data.draw(st.integers(0, len(body) - LARGE - 1))
    body[place] ^= 1 << data.draw(st.integers(0, 7))
    assert_letter_or_line(bytes(body))


@pytest.mark.parametrize(
    ("sizes", "rest", "reason"),
    [
        ([], b"", "it holds 2 arrays, and sizes of 0"),
        ([0, 0, 0], b"", "it holds 2 arrays, and sizes of 3"),
        ([0, 9], b"12345678", "its arrays want 9 bytes, and it has 8"),
        ([(1 << 64) - 1, 1], b"", "its arrays want 18446744073709551616 bytes, and it has 0"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(sizes: list[int], rest: bytes, reason: str) -> None:
    content = RecordDict({"model": ArrayRecord({"a": Array(np.arange(3)), "b": Array(np.arange(3))})})
    envelope = Envelope(type="train", content=private.records_to_bytes(content), arrays=sizes)
    with pytest.raises(ValueError, match=reason):
        unseal(bytearray(head_of(envelope) + rest))


class Answering:
    """The server's end of a stream whose client answers with `body`."""

    settings = Settings("1")

    def __init__(self, body: bytes) -> None:
        self.body = body

    def present(self) -> list[int]:
        return [0]

    def send(self, client: int, buffers: list[bytes], limit: int | None) -> int:
        return 1

    def receive(self, timeout: float) -> list[Response]:
        return [Response(1, 0, bytearray(self.body))]

    def give_up(self, tickets: set[int]) -> None:
        assert not tickets


BAD_ANSWERS = {
    "no envelope": b"\xff" * 40,
    "no records": head_of(Envelope(type="train", content=b"\xff\xff")),
    "a metric without a value": head_of(
        Envelope(type="train", content=b"\x0a\x0d\x0a\x01m\x1a\x08\x0a\x06\x0a\x04loss")
    ),
}


@pytest.mark.parametrize("body", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_server_hears_of_an_answer_that_cannot_be_read_and_goes_on(body: bytes) -> None:
    grid = StreamGrid(Answering(body))  # type: ignore[arg-type]
    (answer,) = grid.send_and_receive([Message(RecordDict(), 2, "train", group_id="1")], timeout=PATIENCE)
    assert answer.has_error()
    assert answer.error.reason.startswith("sent ")
    assert answer.error.reason.isprintable()
