"""A scratch model that begins with another model than the one it was made of."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import world
from fedshare import seeds
from fedshare.tensors import Tensors, fingerprint
from fedshare.training.parts import Parts, Role
from fedshare.training.scratch import Scratch


def net(seed: int = 0, dtype: torch.dtype = torch.float32) -> Scratch:
    """Parts of every role: shared, local, frozen, and running statistics."""
    with seeds.scope(seed, "model"):
        module = world.Net().to(dtype)
    roles = dict(Parts.of(module).roles)
    roles |= {name: Role.FROZEN for name in roles if name.startswith("first.")}
    roles |= {name: Role.LOCAL for name in roles if name.startswith("last.")}
    return Scratch(module, parts=Parts(roles))


def clones(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def state(scratch: Scratch) -> Tensors:
    return clones(scratch.module.state_dict())


@pytest.mark.parametrize("chosen", [lambda name: True, lambda name: "first" in name, lambda name: "last" in name])
def test_a_scratch_begins_as_one_that_was_made_so(chosen: Callable[[str], bool]) -> None:
    mine, other = net(), net(1)
    initial, first, vector = mine.initial, mine.first, mine.vector
    mine.load({"last.bias": torch.ones(world.CLASSES)})
    mine.cache["made of it"] = 1
    told = mine.fingerprint
    wanted = clones({n: t for n, t in other.whole.items() if chosen(n)})
    mine.begin(wanted)
    expected = clones(net().whole) | wanted
    assert mine.fingerprint == fingerprint(expected) != told
    assert mine.cache == {}
    assert (mine.initial, mine.first, mine.vector) == (initial, first, vector), "who has them has the new ones"
    for name, tensor in expected.items():
        assert torch.equal(mine.value(name), tensor), "shown at once"
        assert torch.equal(mine.whole[name], tensor)
        assert name not in initial or torch.equal(initial[name], tensor)
    shared = [name for name in mine.shared if name in mine.parameters]
    assert torch.equal(first, torch.cat([expected[name].flatten() for name in shared]))
    mine.load({"last.bias": torch.ones(world.CLASSES)})
    assert state(mine)["last.bias"].tolist() == [1, 1, 1]
    assert torch.equal(state(mine)["first.weight"], expected["first.weight"])


UNFIT: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "shape": (lambda t: t[:-1], r"first\.bias is torch\.float32 \[7\], not torch\.float32 \[8\]"),
    "one more dimension": (lambda t: t[None], r"first\.bias is torch\.float32 \[1, 8\], not torch\.float32 \[8\]"),
    "type": (lambda t: t.double(), r"first\.bias is torch\.float64 \[8\], not torch\.float32 \[8\]"),
    "NaN": (lambda t: t * torch.nan, r"first\.bias holds NaN or infinity"),
    "infinity": (lambda t: t / 0, r"first\.bias holds NaN or infinity"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_does_not_fit_a_scratch_changes_nothing(kind: str) -> None:
    scratch = net()
    before, told, (spoil, line) = state(scratch), scratch.fingerprint, UNFIT[kind]
    wrong = clones(net(1).whole)
    wrong["first.bias"] = spoil(wrong["first.bias"])
    with pytest.raises(ValueError, match=line):
        scratch.begin(wrong)
    with pytest.raises(ValueError, match="the model has no more"):
        scratch.begin({"last.bias": torch.ones(world.CLASSES), "more": torch.ones(1)})
    assert fingerprint(state(scratch)) == fingerprint(before)
    assert (scratch.fingerprint, fingerprint(scratch.whole)) == (told, told)


def test_a_mask_of_infinities_may_stay_one() -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    scratch, wanted = Scratch(Masked()), clones(Scratch(Masked()).whole)
    scratch.begin(wanted)
    assert scratch.fingerprint == fingerprint(wanted)
    with pytest.raises(ValueError, match="mask holds NaN"):
        scratch.begin({"mask": torch.full((2,), -torch.inf)})
