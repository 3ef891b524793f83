"""Rounds in which every node sends back what it receives. The last line printed holds their durations, as JSON."""

import json
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    wait = float(config["wait"])
    nodes, content = present(grid, int(config["nodes"]), wait), records(int(config["bytes"]), int(config["arrays"]))
    seconds = []
    for _ in range(int(config["rounds"])):
        began = time.perf_counter()
        exchange(grid, nodes, content, wait)
        seconds.append(round(time.perf_counter() - began, 6))
    print(json.dumps({"echo": seconds}), flush=True)


def records(size: int, arrays: int = 1) -> RecordDict:
    """Return `size` bytes in total as `arrays` arrays of float32; almost nothing if `size` is 0."""
    if size == 0:
        return RecordDict({"config": ConfigRecord({"step": 1})})
    values = np.ones(size // arrays // 4, np.float32)
    return RecordDict({"arrays": ArrayRecord({f"layer.{i}": Array(values) for i in range(arrays)})})


def present(grid: Grid, count: int, wait: float) -> list[int]:
    """Return the first `count` nodes, as soon as there are as many. Raises TimeoutError."""
    until = time.monotonic() + wait
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"waited {wait:g} s for {count} nodes; have {len(nodes)}")
        time.sleep(0.05)
    return nodes[:count]


def exchange(grid: Grid, nodes: list[int], content: RecordDict, wait: float) -> None:
    """Play one round. Raises RuntimeError if a node does not send back what it received."""
    messages = [Message(content, node, "query") for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=wait))
    failed = [reply.error.reason or f"error {reply.error.code}" for reply in replies if reply.has_error()]
    if failed or len(replies) < len(nodes):
        raise RuntimeError(
            f"{len(replies)} replies of {len(nodes)} in {wait:g} s{': ' * bool(failed)}{'; '.join(failed)}"
        )
    if any(reply.content.keys() != content.keys() for reply in replies):
        raise RuntimeError("a node sent back something else")
