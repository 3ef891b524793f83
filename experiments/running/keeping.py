"""Saving a run: its checkpoints, the checkpoint of the best round, and the models."""

import time
from collections.abc import Iterator

from safetensors.torch import save as save_tensors

from fedshare.errors import RunHalted
from fedshare.machine.files import write_atomically
from fedshare.network import Network
from fedshare.report.best import Best
from fedshare.rounds import Round
from fedshare.runs import RunFolder, checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.state import State, copied, nbytes
from fedshare.tensors import Tensors

_TWICE = 1 << 28  # bytes of what clients remember that are held a second time, in case the run halts in the next round


class Keeper:
    """Saves the server's memory and the clients' memories known to `network`, in `folder`."""

    def __init__(self, folder: RunFolder, network: Network) -> None:
        self._folder, self._network = folder, network

    def recall(self, start: Checkpoint) -> None:
        """Restore the clients' memories from `start`."""
        self._network.memories.recall(start.clients, start.round)
        self._tell_oldest()

    def save(self, done: Round) -> float:
        """Write the checkpoint of a round; return how long it took, in seconds."""
        began = time.perf_counter()
        checkpoint.save(self._folder.checkpoints, self._checkpoint(done))
        self._tell_oldest()
        return time.perf_counter() - began

    def save_best(self, done: Round, best: Best) -> None:
        """Save a round as the best one, with its model."""
        checkpoint.save(self._folder.best, self._checkpoint(done), keep=1)
        if "params" in done.state:
            about = {"round": str(best.round), "metric": best.metric, "validation": repr(best.value)}
            write_atomically(self._folder.best_model, _packed(done.state["params"], about))

    def save_models(self, state: State) -> list[str]:
        """Write the final model, if the state has one. Returns the names of the model files."""
        files = [self._folder.best_model.name] * self._folder.best_model.exists()
        if "params" not in state:
            return files
        write_atomically(self._folder.model, _packed(state["params"]))
        return [self._folder.model.name, *files]

    def until_halted(self, coming: Iterator[Round]) -> Iterator[Round]:
        """Yield the rounds; if one halts the run, write a checkpoint of the round before, from which it can resume.

        If the clients' memories are too large to be held twice, it resumes from the last regular checkpoint, to the
        same bits.
        """
        last: Checkpoint | None = None
        memories = self._network.memories
        try:
            for done in coming:
                last = None
                yield done
                if nbytes(held := memories.remember()) <= _TWICE:
                    # A copy, made now, because the next round changes the clients' memories.
                    last = Checkpoint(done.number, done.link.digest, done.state, copied(held), memories.remote)
        except RunHalted:
            if last is not None and checkpoint.rounds(self._folder.checkpoints)[:1] != [last.round]:
                checkpoint.save(self._folder.checkpoints, last)
            raise

    def _checkpoint(self, done: Round) -> Checkpoint:
        memories = self._network.memories
        return Checkpoint(done.number, done.link.digest, done.state, memories.remember(), memories.remote)

    def _tell_oldest(self) -> None:
        """Tell clients that keep their memories which is the oldest checkpoint: earlier ones are not needed."""
        self._network.memories.keep(checkpoint.rounds(self._folder.checkpoints)[-1])


def _packed(tensors: Tensors, about: dict[str, str] | None = None) -> bytes:
    return save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
