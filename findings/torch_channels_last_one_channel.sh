#!/usr/bin/env bash
# For images of one channel, x.contiguous(memory_format=torch.channels_last) is not what x.to(memory_format=...) is.
#
# Versions: torch 2.13.0, numpy 2.4.6.
# Seen: with x of shape [8, 1, 28, 28], `contiguous` returns x with its old strides, because such a tensor counts as
#   contiguous in both formats; `to` returns other strides, though x already reports is_contiguous in that format. A
#   convolution decides by the strides: after `contiguous` its output, and all later layers', are channels-first.
# Expected: the same strides from both.
# Matters: on MNIST-like data a layout asked for by `contiguous` is silently not used, and a benchmark of it measures
#   nothing. Use `to`.

source "$(dirname "$0")/common.sh"
venv_with torch==2.13.0 numpy==2.4.6
run <<'PY'
import torch

LAST = torch.channels_last
conv = torch.nn.Conv2d(1, 4, 3)
x = torch.rand(8, 1, 28, 28)
ways = {
    "contiguous": x.contiguous(memory_format=LAST),
    "to": x.to(memory_format=LAST),
}
for name, images in ways.items():
    answer = conv(images).is_contiguous(memory_format=LAST)
    print(f"{name}: strides {images.stride()}, the convolution's output is channels-last: {answer}")
    assert images.is_contiguous(memory_format=LAST)
    assert answer is (name == "to")
assert x.is_contiguous(memory_format=LAST)
PY
