"""The models that a run leaves as files: the last one, and that of the best round."""

from safetensors.torch import save as save_tensors

from fedshare.machine.files import write_atomically
from fedshare.report.best import Best
from fedshare.runs import RunFolder
from fedshare.state import State
from fedshare.tensors import Tensors


def write_last(folder: RunFolder, state: State) -> list[str]:
    """Write the final model, if the state has one. Returns the names of the model files."""
    files = [folder.best_model.name] * folder.best_model.exists()
    if "params" not in state:
        return files
    write_atomically(folder.model, _packed(state["params"]))
    return [folder.model.name, *files]


def write_best(folder: RunFolder, state: State, best: Best) -> None:
    """Write the model of the best round, if the state has one."""
    if "params" in state:
        about = {"round": str(best.round), "metric": best.metric, "validation": repr(best.value)}
        write_atomically(folder.best_model, _packed(state["params"], about))


def _packed(tensors: Tensors, about: dict[str, str] | None = None) -> bytes:
    return save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
