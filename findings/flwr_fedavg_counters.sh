#!/usr/bin/env bash
# Flower's FedAvg averages BatchNorm's batch counter to just below 1, which is loaded as 0.
#
# Versions: flwr 1.39.0, torch 2.13.0.
# Seen: ten replies whose integer num_batches_tracked is 1 are averaged to 0.9999999999999999 as float64 (six, seven
#   and ten replies; with others it is 1 or just above), and load_state_dict cuts that down to 0.
# Expected: the average of ten equal integers is that integer, in its dtype.
# Matters: all state_dicts of models with BatchNorm hold that counter; with momentum=None it decides how running
#   statistics are averaged, and other integer buffers go the same way. Leave integers out of the average.
source "$(dirname "$0")/common.sh"
venv_with flwr==1.39.0 torch==2.13.0 numpy==2.4.6

run <<'PY'
import logging

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # else a Message needs a running SuperLink


def reply(node, arrays):
    asked = Message(RecordDict(), dst_node_id=node, message_type="train")
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=asked)


trained = torch.nn.BatchNorm1d(2)
trained(torch.rand(4, 2))
averages = {}
for clients in range(2, 13):
    replies = [reply(node, ArrayRecord(trained.state_dict())) for node in range(2, 2 + clients)]
    average = FedAvg().aggregate_train(1, replies)[0].to_torch_state_dict()
    averages[clients] = average["num_batches_tracked"]
    if clients == 10:
        loaded = torch.nn.BatchNorm1d(2)
        loaded.load_state_dict(average)
print({clients: average.item() for clients, average in averages.items()})
print("trained", trained.num_batches_tracked.item(), "average of ten, loaded", loaded.num_batches_tracked.item())
assert trained.num_batches_tracked == 1
assert averages[10].dtype == torch.float64
assert averages[10] < 1
assert loaded.num_batches_tracked == 0
PY
