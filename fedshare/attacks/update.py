"""Uploads as updates: what an upload says that a client has learnt, whichever way the strategy says it."""

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.tensors import Tensors

MODEL, CHANGE = "params", "update"  # by convention, what uploads call the model after training, and its change


def read(upload: Payload, start: Tensors) -> Tensors:
    """Of a model, its difference from `start`; of a change, the change: by ``group/name``, floating point only.

    Raises UserError where the upload has neither, and so nothing that can be lied about.
    """
    update = {}
    for group, tensors in upload.tensors.items():
        for name, tensor in tensors.items() if group in (MODEL, CHANGE) else ():
            if tensor.is_floating_point():
                update[f"{group}/{name}"] = tensor - start[name] if group == MODEL else tensor
    if upload.tensors and not update:
        raise UserError(f"attack: the strategy uploads neither {MODEL} nor {CHANGE}: {', '.join(upload.tensors)}")
    return update


def write(upload: Payload, start: Tensors, update: Tensors) -> Payload:
    """`upload` with `update`, as `read` names it, in place of its own."""
    tensors = {group: dict(named) for group, named in upload.tensors.items()}
    for path, change in update.items():
        group, name = path.split("/", 1)
        old = tensors[group][name]
        tensors[group][name] = (start[name] + change if group == MODEL else change).to(old.dtype)
    return Payload(tensors, upload.metrics)
