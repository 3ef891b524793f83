"""The checkpoints of a run, and the checkpoint of its best round."""

import time
from collections.abc import Iterator

from fedshare.errors import RunHalted
from fedshare.experiments.running.models import write_best
from fedshare.network import Network
from fedshare.report.best import Best
from fedshare.rounds import Round
from fedshare.runs import RunFolder, checkpoint
from fedshare.runs.checkpoint import Checkpoint
from fedshare.state import copied, nbytes

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
        write_best(self._folder, done.state, best)

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
