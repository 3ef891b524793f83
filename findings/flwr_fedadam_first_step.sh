#!/usr/bin/env bash
# Flower's FedAdam makes a first step of 0.74 eta, where Adam's bias correction gives eta.
#
# Versions: flwr 1.39.0.
# Seen: the correction's exponent is the round plus one, and rounds begin at 1. With eta 0.1 and an update of 1 the
#   first step is 0.0742. FedYogi and FedAdagrad, without a correction, take 0.1.
# Expected: 0.1: after one update of Adam m / sqrt(v) is 1 once both are corrected.
# Matters: a server rate tuned in Flower is not the one of the paper or of another framework, and the difference is in
#   the early rounds where FedAdam is most sensitive.
source "$(dirname "$0")/common.sh"
venv_with flwr==1.39.0

run <<'PY'
import logging

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # else a Message needs a running SuperLink


class TwoNodes:
    def get_node_ids(self):
        return [2, 3]


def answer(asked):
    update = ArrayRecord([array + 1 for array in asked.content["arrays"].to_numpy_ndarrays()])
    return Message(RecordDict({"arrays": update, "metrics": MetricRecord({"num-examples": 1})}), reply_to=asked)


def first_step(kind):
    strategy = kind(eta=0.1, tau=1e-9)
    asked = strategy.configure_train(1, ArrayRecord([np.zeros(1)]), ConfigRecord(), TwoNodes())
    arrays, _ = strategy.aggregate_train(1, [answer(message) for message in asked])
    return float(arrays.to_numpy_ndarrays()[0][0])


steps = {kind.__name__: first_step(kind) for kind in (FedAdam, FedYogi, FedAdagrad)}
print(steps)
ratio = np.sqrt(1 - 0.99**2) / (1 - 0.9**2) * (1 - 0.9) / np.sqrt(1 - 0.99)
print("by the exponent round + 1:", 0.1 * ratio)
assert abs(steps["FedAdam"] - 0.1 * ratio) < 1e-6
assert ratio < 0.75
assert abs(steps["FedYogi"] - 0.1) < 1e-6
assert abs(steps["FedAdagrad"] - 0.1) < 1e-6
PY
