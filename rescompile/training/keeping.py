"""The weights that a training leaves: .safetensors files that say how they are used."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from torch import nn

from rescompile.sources.trained import Trained
from rescompile.training.data import TrainingData
from rescompile.training.feed import Feed
from rescompile.training.networks import Start
from rescompile.training.recipe import Recipe
from rescompile.training.run_folder import BEST, LAST, RunFolder
from rescompile.training_report import EpochRecord


@dataclass(frozen=True, eq=False)
class Origin:
    """Metadata that all weights of a run share."""

    start: Start
    feed: Feed
    recipe: Recipe
    data: TrainingData
    calibration: str
    """File beside the weights that INT8 scales come from."""

    def of(self, record: EpochRecord) -> dict[str, str]:
        """The metadata of weights at ``record``."""
        return Trained(
            model=self.start.spec.name,
            preprocess=self.feed.preprocess,
            classes=self.data.class_names,
            data=self.data.name,
            recipe=msgspec.to_builtins(self.recipe),
            step=record.step,
            test_error=record.test_error,
            calibration=self.calibration,
        ).metadata()


@dataclass(frozen=True, eq=False)
class WeightKeeper:
    """Writes the network's own state as ``last.safetensors`` and ``best.safetensors``."""

    folder: RunFolder
    origin: Origin

    def keep(self, network: nn.Module, record: EpochRecord, *, best: bool) -> None:
        """See ``loop.Keeper``."""
        for name in (LAST, *([BEST] if best else [])):
            self.folder.write_tensors(name, network.state_dict(), self.origin.of(record))
