"""Uploads as updates: the change of the model that an upload contains, whichever form the strategy uses."""

from fedshare.errors import UserError
from fedshare.payload import Payload
from fedshare.tensors import Tensors

MODEL, CHANGE = "params", "update"  # conventional group names of the trained model and of its change in uploads


def read(upload: Payload, start: Tensors) -> Tensors:
    """Return a model minus `start`, or a change as it is, by ``group/name``, floating point only.

    Raises UserError if the upload has neither, so that there is nothing to forge.
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
    """Return `upload` with its own update replaced by `update`, named as in `read`."""
    tensors = {group: dict(named) for group, named in upload.tensors.items()}
    for path, change in update.items():
        group, name = path.split("/", 1)
        old = tensors[group][name]
        tensors[group][name] = (start[name] + change if group == MODEL else change).to(old.dtype)
    return Payload(tensors, upload.metrics)
