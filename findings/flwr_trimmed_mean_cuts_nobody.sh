#!/usr/bin/env bash
# Flower's FedTrimmedAvg with its default setting trims no reply if there are fewer than five.
#
# Versions: flwr 1.39.0.
# Seen: int(beta * n) values go at each end. Four replies 0, 1, 2 and 100 at the default beta = 0.2 average to 25.75;
#   five replies 0, 1, 2, 3, 100 to 2.
# Expected: at least one value cut for a positive beta, or an error or a warning that none is.
# Matters: cohorts are small, and get smaller by drop-outs in a round; the robust rule then silently is the mean, and
#   one reply moves it at will.
source "$(dirname "$0")/common.sh"
venv_with flwr==1.39.0

run <<'PY'
import logging

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedTrimmedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # else a Message needs a running SuperLink


def reply(node, value):
    asked = Message(RecordDict(), dst_node_id=node, message_type="train")
    content = {"arrays": ArrayRecord([np.array([value])]), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=asked)


def trimmed(*values):
    replies = [reply(node, value) for node, value in enumerate(values, 2)]
    return float(FedTrimmedAvg().aggregate_train(1, replies)[0].to_numpy_ndarrays()[0][0])


four, five = trimmed(0.0, 1.0, 2.0, 100.0), trimmed(0.0, 1.0, 2.0, 3.0, 100.0)
print("beta", FedTrimmedAvg().beta, "of four replies", four, "of five", five)
assert four == 25.75
assert five == 2.0
PY
