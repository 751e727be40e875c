"""The network that a source brings, before anything of it is rewritten: one form for every framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from numpy.typing import NDArray

from calibration.preprocess import Preprocess
from rescompile.manifest import CheckpointRef, OutputKind

if TYPE_CHECKING:
    import onnx

EnsembleMean = Literal["probabilities", "logits"]
"""The quantity that an ensemble averages."""
ENSEMBLE_MEANS: tuple[str, ...] = get_args(EnsembleMean)

Reference = Callable[[NDArray[Any]], NDArray[Any]]
"""A framework's own answer to images [N, C, H, W]."""


@dataclass(frozen=True, kw_only=True)
class SourceNetwork:
    """A graph as its framework exported it, and what came along with it."""

    graph: onnx.ModelProto
    """float32 images [N, C, H, W] (or what the graph itself says) to its outputs; any opset from 7 on."""
    name: str
    checkpoint: CheckpointRef
    preprocess: Preprocess | None = None
    """None where nothing says how the images are prepared."""
    preprocess_from: str | None = None
    """Where ``preprocess`` was read, for the report: "timm's pretrained_cfg"."""
    class_names: tuple[str, ...] | None = None
    kind: OutputKind | None = None
    """Meaning of the first output where the network's own configuration says it."""
    kind_from: str = ""
    notes: tuple[str, ...] = ()
    """Sentences for the user: which entry of the file was taken, what was left out."""
    reference: Reference | None = None
    """The framework's own answer to images [N, C, H, W], to check the graph against; None where there is none."""
