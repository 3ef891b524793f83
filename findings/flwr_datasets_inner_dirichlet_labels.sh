#!/usr/bin/env bash
# flwr-datasets' InnerDirichletPartitioner assumes labels 0 to K-1: with labels 1 to 5, examples of the last label are
# assigned to no client.
#
# Versions: flwr-datasets 0.6.1.
# Seen: five classes of 200 rows, 600 asked for. With labels 0 to 4 all five are dealt out; with 1 to 5 none of label 5,
#   no error or warning, and no partition short.
# Expected: any labels, as the other partitioners take them.
# Matters: data sets that count from 1, or whose labels are a subset of a larger set, lose a class (or more) in every
#   client and every figure.
source "$(dirname "$0")/common.sh"
venv_with flwr-datasets==0.6.1 datasets==4.8.5

run <<'PY'
from collections import Counter

import datasets
from flwr_datasets.partitioner import DirichletPartitioner, InnerDirichletPartitioner

datasets.disable_progress_bars()


def counts(partitioner, first):
    partitioner.dataset = datasets.Dataset.from_dict({"label": [first + row % 5 for row in range(1000)]})
    return sorted(Counter(label for part in range(10) for label in partitioner.load_partition(part)["label"]).items())


zero, one = (counts(InnerDirichletPartitioner([60] * 10, "label", alpha=1.0), first) for first in (0, 1))
other = counts(DirichletPartitioner(10, "label", alpha=1.0, min_partition_size=1), 1)
print("labels from 0:", zero)
print("labels from 1:", one)
print("labels from 1, DirichletPartitioner:", other)
assert [label for label, _ in zero] == [0, 1, 2, 3, 4]
assert [label for label, _ in one] == [1, 2, 3, 4]
assert sum(count for _, count in one) == 600
assert [label for label, _ in other] == [1, 2, 3, 4, 5]
PY
