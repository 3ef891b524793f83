"""Generated from protos/ by protos/generate."""

from google.protobuf.message import DecodeError

__all__ = ["DecodeError"]
