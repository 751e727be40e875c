"""The networks of the suites, their weights, and the time budget of a run."""

from __future__ import annotations

import lzma
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RELATIVE_COST = {"resnet18": 0.45, "resnet34": 0.9, "resnet50": 1.0, "resnet101": 1.9, "resnet152": 2.8}
"""Time of a network's suite relative to ResNet-50's, estimated from their operations."""
DEEP = frozenset({"resnet101", "resnet152"})
"""Networks that only the most informative contenders run, so that all networks fit into a run."""
TINY = "resnet20-cifar"
_CHECKPOINTS = {
    "resnet18": "resnet18-pqf.pth.xz",
    "resnet50": "resnet50-pqf.pth.xz",
    TINY: "resnet20-12fca82f.th",
}


@dataclass(frozen=True)
class Network:
    """A network with the options that name it on the command line."""

    name: str
    weights: str
    """A file, or ``random``."""
    said: str
    """The description of the weights in results."""
    calibration_set: Path | None

    @property
    def options(self) -> list[str]:
        """Options of ``rescompile build`` for the network and its weights."""
        return ["--model", self.name, "--weights", self.weights]


def network(name: str, folder: Path) -> Network:
    """``name`` with a real checkpoint where RESCOMPILE_DATA has one, else with random weights.

    Args:
        name: as ``--model`` takes it.
        folder: where an unpacked checkpoint and small images may be written.
    """
    data = os.environ.get("RESCOMPILE_DATA")
    images = _images(name, folder, data)
    packed = Path(data or "") / "weights" / _CHECKPOINTS.get(name, "none")
    if not data or not packed.is_file():
        return Network(name, "random", "random weights", images)
    if packed.suffix != ".xz":
        return Network(name, str(packed), packed.name, images)
    plain = folder / packed.stem
    if not plain.is_file():
        plain.write_bytes(lzma.decompress(packed.read_bytes()))
    return Network(name, str(plain), packed.name, images)


def _images(name: str, folder: Path, data: str | None) -> Path | None:
    """Calibration images; None where an ImageNet network uses the built-in photographs."""
    real = Path(data or "") / "imagenet" / "calibration"
    if "cifar" not in name:
        return real if data and real.is_dir() else None
    path = folder / "patches.npz"
    if not path.is_file():
        coarse = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
        np.savez(path, images=coarse.repeat(4, axis=1).repeat(4, axis=2))
    return path


class OutOfTime(Exception):
    """The time of a run is not enough; the message says what to do."""


class Budget:
    """The minutes of a whole run. Work of unknown cost may start while any time is left."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._end = time.monotonic() + 60 * minutes
        self._unit: float | None = None
        """Seconds of a network of relative cost 1."""

    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def claim(self, name: str) -> None:
        """Check that there is time for one part of the network ``name``.

        Raises:
            OutOfTime: less time is left than the part is expected to take.
        """
        cost = (self._unit or 0.0) * RELATIVE_COST.get(name, 0.1)
        if self.left() <= cost:
            raise OutOfTime(
                f"the {self.minutes:g} minutes of this run are not enough; pass --minutes, or --networks {name}"
            )

    def spent(self, name: str, seconds: float) -> None:
        """Record the seconds that ``name`` took, to estimate the cost of others."""
        self._unit = max(self._unit or 0.0, seconds / RELATIVE_COST.get(name, 0.1))
