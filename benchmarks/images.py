"""The memory that images read lazily from a folder need, which should not depend on their number.

    python benchmarks/images.py

For each count of images, `fedshare run` trains on them for one round in its own process, with 2 worker processes.
Memory is the peak of each process: relative to the same process when its loaded model got the first batch to learn
from, and in brackets relative to the peak of a run on a few images. Images are PNG files in one folder per class,
created below --into once.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from memory import read
from PIL import Image
from torch import Tensor

from fedshare.models import CNN

CLASSES, SIDE, BATCH = 10, 32, 32


class Folder:
    """A map-style Dataset: ROOT/CLASS/NAME.png."""

    def __init__(self, root: str) -> None:
        self.paths = sorted(Path(root).glob("*/*.png"))
        self.targets = [int(path.parent.name) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            pixels = np.asarray(image, dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1), self.targets[index]


class Watched(CNN):
    """Records the memory of its process when it gets the first batch to learn from."""

    def forward(self, x: Tensor) -> Tensor:
        note = Path(os.environ["NOTES"]) / str(os.getpid())
        if self.training and not note.exists():
            note.write_text(str(read("VmRSS")))
        return super().forward(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="20000,40000")
    parser.add_argument("--few", type=int, default=400, help="how many images the run has that others are held against")
    parser.add_argument("--into", default="runs/images")
    options = parser.parse_args()
    batch = BATCH * 3 * SIDE * SIDE * 4
    print(
        f"two batches: {2 * batch / 1e6:.1f} MB\n"
        "| images | all as float32, MB | the run above its loaded model | a worker above its own | time |"
    )
    print("|---|---|---|---|---|")
    base: list[float] = []
    for count in (options.few, *map(int, options.counts.split(","))):
        root = made(Path(options.into) / str(count), count)
        peaks, seconds = run(root)
        base = base or peaks
        above = [f"{peak:+.0f} MB ({peak - first:+.0f})" for peak, first in zip(peaks, base, strict=True)]
        print(
            f"| {count:,} | {count * batch / BATCH / 1e6:,.0f} | {above[0]} | {above[1]} | {seconds:.0f} s |",
            flush=True,
        )


def made(root: Path, count: int) -> Path:
    """Create a folder of images of distinct noise."""
    if len(list(root.glob("*/*.png"))) == count:
        return root
    rng = np.random.default_rng(0)
    for index in range(count):
        folder = root / str(index % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(
            folder / f"{index}.png", compress_level=0
        )
    return root


def run(root: Path) -> tuple[list[float], float]:
    """Return the peak MB of the run's process and of a worker, above those with the model loaded; and the seconds."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *("data=torch", f"data.load.train={{_target_: images.Folder, root: {root.absolute()}}}"),
            *(
                f"data.shape=[3,{SIDE},{SIDE}]",
                f"data.classes={CLASSES}",
                "model=cnn",
                "model._target_=images.Watched",
                "model.hidden=64",  # a server holds many copies of a model, and this measures images
                "partition=iid",
                "data.clients=4",
            ),
            *(
                "rounds=1",
                "workers=2",
                "client.epochs=1",
                f"client.batch_size={BATCH}",
                f"client.evaluation_batch_size={BATCH}",
                f"folder={folder}/run",
            ),
        ]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "fedshare", "run", "--config-dir", str(here), *overrides],
            stdout=subprocess.DEVNULL,
            env=os.environ | {"NOTES": folder},
        )
        peaks = dict[str, float]()
        while process.poll() is None:
            for note in Path(folder).glob("[0-9]*"):
                peaks[note.name] = max(peaks.get(note.name, 0.0), peak(note.name))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"the run ended with {process.returncode}")
        above = {pid: peak - int((Path(folder) / pid).read_text()) / 1e6 for pid, peak in peaks.items()}
        own = above.pop(str(process.pid))
        return [own, max(above.values())], time.perf_counter() - start


def peak(pid: int | str) -> float:
    """Return the peak memory of a process in MB; 0 if it has ended."""
    try:
        return read("VmHWM", pid) / 1e6
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
