"""The relay's log over gRPC: the relay's end, and a peer's."""
