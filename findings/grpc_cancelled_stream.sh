#!/usr/bin/env bash
# A grpc.aio server cannot distinguish a client stream that was cancelled or timed out from a complete one.
#
# Versions: grpcio 1.85.1.
# Seen: the client cancels after 3 of 10 parts, or its deadline passes. The server's `async for` over the parts ends
#   with no exception, the next lines of the handler run, and context.cancelled() and done() are False there.
# Expected: an exception out of the loop, as reading from a broken connection raises.
# Matters: a model update travels in parts. Half of one looks whole, and a handler that stores what it has read stores
#   it. Put the number of parts, or a last mark, into the protocol.
source "$(dirname "$0")/common.sh"
venv_with grpcio==1.85.1

run <<'PY'
import asyncio
import threading

import grpc

ended = []


async def upload(parts, context):
    read = 0
    async for _ in parts:
        read += 1
    ended.append((read, context.cancelled(), context.done()))
    return b"stored"


async def attempt(kind):
    server = grpc.aio.server()
    handler = grpc.stream_unary_rpc_method_handler(upload)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Updates", {"Upload": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await asyncio.to_thread(client, kind, port)
    await asyncio.sleep(1)
    await server.stop(0)


def client(kind, port):
    sent, released = threading.Event(), threading.Event()

    def parts():
        yield from [b"part"] * 3
        sent.set()
        if kind == "whole":
            yield from [b"part"] * 7
        else:
            released.wait(10)

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_unary("/Updates/Upload").future(parts(), timeout=2 if kind == "deadline" else 30)
        if kind == "cancelled":
            sent.wait(10)
            threading.Event().wait(1)
            call.cancel()
        try:
            print(kind, "client sees", call.result())
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            print(kind, "client sees", getattr(error, "code", lambda: type(error).__name__)())
        threading.Event().wait(1)
        released.set()


for kind in ("whole", "cancelled", "deadline"):
    asyncio.run(attempt(kind))
    print("  the server's loop ended after (parts, cancelled, done):", ended[-1])
assert ended == [(10, False, False), (3, False, False), (3, False, False)]
PY
