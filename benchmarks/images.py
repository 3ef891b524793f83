"""How much memory images that are read lazily from a folder need, however many there are.

    python benchmarks/images.py

Each count of images is trained on for a round by `fedshare run` in a process of its own, with 2 worker processes.
Memory is the peak of each process, and in brackets that less the peak of a run on a few images, in which everything is
loaded as well and batches are as large. Images are PNG files in a folder a class, made below --into once.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="20000,40000")
    parser.add_argument("--few", type=int, default=400, help="how many images the run has that others are held against")
    parser.add_argument("--into", default="runs/images")
    options = parser.parse_args()
    batch = BATCH * 3 * SIDE * SIDE * 4
    print(
        f"two batches: {2 * batch / 1e6:.1f} MB\n| images | all as float32, MB | peak of the run | of a worker | time |"
    )
    print("|---|---|---|---|---|")
    base: list[float] = []
    for count in (options.few, *map(int, options.counts.split(","))):
        root = made(Path(options.into) / str(count), count)
        peaks, seconds = run(root)
        base = base or peaks
        above = [f"{peak:.0f} MB ({peak - first:+.0f})" for peak, first in zip(peaks, base, strict=True)]
        print(
            f"| {count:,} | {count * batch / BATCH / 1e6:,.0f} | {above[0]} | {above[1]} | {seconds:.0f} s |",
            flush=True,
        )


def made(root: Path, count: int) -> Path:
    """A folder of images, each other noise than the next."""
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
    """MB at the peak of the run's process and of its largest worker, and seconds."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *("data=torch", f"data.load.train={{_target_: images.Folder, root: {root.absolute()}}}"),
            *(
                f"data.shape=[3,{SIDE},{SIDE}]",
                f"data.classes={CLASSES}",
                "model=cnn",
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
            [sys.executable, "-m", "fedshare", "run", "--config-dir", str(here), *overrides], stdout=subprocess.DEVNULL
        )
        own, workers = 0.0, dict[str, float]()
        while process.poll() is None:
            own = max(own, peak(process.pid))
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            for child in children.read_text().split() if children.exists() else []:
                workers[child] = max(workers.get(child, 0.0), peak(child))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"the run ended with {process.returncode}")
        return [own, max(workers.values())], time.perf_counter() - start


def peak(pid: int | str) -> float:
    """MB that a process has had at its most; 0 where it has gone."""
    try:
        return read("VmHWM", pid) / 1e6
    except OSError:
        return 0.0


if __name__ == "__main__":
    main()
