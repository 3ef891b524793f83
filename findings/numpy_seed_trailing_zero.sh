#!/usr/bin/env bash
# numpy's seeds [7, 3] and [7, 3, 0] give the same stream, and so do [2**32 + 5] and [5, 1].
#
# Versions: numpy 2.4.6.
# Seen: SeedSequence pads with zeros and cuts large numbers into 32-bit words, so lists of other lengths give equal
#   streams. Children by spawn are told apart only from parents with short seeds: child 1 of seed 7 is [7, 0, 0, 0, 1].
# Expected: other lists, other streams.
# Matters: keys like (seed, round) for the server and (seed, round, client) for clients are the natural way to seed
#   federated runs; client 0 then draws the server's own noise. Start keys with their length or a purpose.
source "$(dirname "$0")/common.sh"
venv_with numpy==2.4.6

run <<'PY'
import numpy as np


def stream(seed):
    return np.random.default_rng(seed).integers(0, 10**6, 4).tolist()


for one, two in (([7, 3], [7, 3, 0]), ([2**32 + 5], [5, 1]), (np.random.SeedSequence(7).spawn(2)[1], [7, 0, 0, 0, 1])):
    print(one, "and", two, "give", stream(one), stream(two))
    assert stream(one) == stream(two)
assert stream([7, 3]) != stream([7, 3, 1])
assert stream([7, 3]) != stream([0, 7, 3])
PY
