#!/usr/bin/env bash
# Equal protobuf messages with a map may have different bytes, and parsing and re-serialising one changes its bytes.
#
# Versions: protobuf 6.33.6 (its upb core).
# Seen: a Struct of ten names filled forwards and backwards: the messages are equal, their bytes and the order of their
#   maps are not; reading one's bytes and writing them again gives other bytes. Another process has another order.
#   SerializeToString(deterministic=True) is the same each time.
# Expected: insertion order, as Python's dict and protobuf's own pure-Python core have it.
# Matters: digests and signatures of a message with named tensors or metrics do not verify after a hop, and flattening
#   a map's values in order mixes tensors up. Use repeated fields with names; hash the content, not the message.
source "$(dirname "$0")/common.sh"
venv_with protobuf==6.33.6

run <<'PY'
from google.protobuf.internal import api_implementation
from google.protobuf.struct_pb2 import Struct

names = [f"layer{place}" for place in range(10)]
forwards, backwards = Struct(), Struct()
forwards.update(dict.fromkeys(names, 1.0))
backwards.update(dict.fromkeys(reversed(names), 1.0))
again = Struct.FromString(forwards.SerializeToString())
print(api_implementation.Type(), "order filled forwards:", *forwards.fields)
print("order filled backwards:", *backwards.fields)
assert api_implementation.Type() == "upb"
assert forwards == backwards == again
assert list(forwards.fields) != names
assert forwards.SerializeToString() != backwards.SerializeToString()
assert forwards.SerializeToString() != again.SerializeToString()
fixed = {message.SerializeToString(deterministic=True) for message in (forwards, backwards, again)}
print("different bytes with deterministic=True:", len(fixed))
assert len(fixed) == 1
PY
