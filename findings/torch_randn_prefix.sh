#!/usr/bin/env bash
# torch's randn(n) is not a prefix of randn(m), because its last numbers depend on the length. rand(n) is a prefix of
# rand(m).
#
# Versions: torch 2.13.0 (CPU).
# Seen: with one seed, randn(15) shares no number with randn(16); randn(100) differs from the start of randn(104) in
#   eight of its last sixteen numbers (they are drawn anew, from 16 on); two draws of 8 are not one of 16. rand is a
#   plain stream in all three.
# Expected: a generator is a stream: what is drawn depends on how many were drawn before.
# Matters: shared-seed methods regenerate a direction instead of sending it. Drawn tensor by tensor, flat or in
#   chunks it is another direction, sometimes in so few places that a look does not show it.
source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6

run <<'PY'
import torch


def draw(kind, *sizes):
    generator = torch.Generator().manual_seed(0)
    return torch.cat([kind(size, generator=generator) for size in sizes])


def facts(kind):
    short, long = draw(kind, 100), draw(kind, 104)[:100]
    return {
        "15 begins 16": bool((draw(kind, 15) == draw(kind, 16)[:15]).any()),
        "100 and 104 differ at": (short != long).nonzero().flatten().tolist(),
        "8 + 8 is 16": torch.equal(draw(kind, 8, 8), draw(kind, 16)),
    }


seen = {kind.__name__: facts(kind) for kind in (torch.rand, torch.randn)}
for name, found in seen.items():
    print(name, found)
assert seen["randn"]["15 begins 16"] is False
places = seen["randn"]["100 and 104 differ at"]
assert places
assert min(places) >= 84
assert seen["randn"]["8 + 8 is 16"] is False
assert seen["rand"]["15 begins 16"] is True
assert seen["rand"]["100 and 104 differ at"] == []
assert seen["rand"]["8 + 8 is 16"] is True
PY
