"""What can be compared by block: an fp32 reference, a deployable graph or an engine, as one kind of thing.

A side takes the pixels of one image and answers with the tensors at the ends of its blocks, in the fp32 network's
own unit. How a user names one:

    DIR  DIR:engine    the engine of an engine directory
    DIR:graph          its deployable graph, model.onnx
    DIR:fp32           its fp32 reference, reference.onnx
    FILE.onnx          any graph that rescompile wrote
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from calibration.names import text_of
from calibration.preprocess import Preprocess
from rescompile.accuracy.error_by_block import Probe
from rescompile.accuracy.graph_description import (
    Fed,
    classes_of,
    quantized,
    read_graph,
    saturated_elements,
    tops_of,
)
from rescompile.backends.openvino.runner import OpenVinoTensors
from rescompile.errors import EngineError, UsageError, did_you_mean
from rescompile.graph.shared.metadata import factors_of, in_original_unit, offsets_of
from rescompile.graph.shared.topology import block_of, block_outputs
from rescompile.manifest import GRAPH, MANIFEST, REFERENCE, Manifest, read_manifest
from rescompile.runtime.engine import Engine
from rescompile.runtime.integrity import check_files
from rescompile.runtime.loading import load

Part = Literal["fp32", "graph", "engine"]
PARTS: tuple[Part, ...] = get_args(Part)

_WHERE = "pass an engine directory, DIR:fp32, DIR:graph, DIR:engine or FILE.onnx"


@dataclass(frozen=True)
class SideName:
    """A side as the user wrote it; ``part`` is None for a file."""

    path: Path
    part: Part | None

    def __str__(self) -> str:
        text = text_of(self.path)
        return text if self.part is None else f"{text}:{self.part}"


@dataclass(frozen=True)
class Seen:
    """What one image left in a side."""

    values: Mapping[str, NDArray[Any]]
    """Block to its output [C, H, W], or logits [classes], in the fp32 network's unit."""
    saturated: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Quantized tensor to its elements at +-127 or -128, and to all of its elements."""


class Side(Protocol):
    """One of the two that are compared."""

    name: str
    """How the user named it, and what it is."""
    blocks: tuple[str, ...]
    """Blocks of its network, in the order of execution: stem, every residual block, fc."""
    visible: frozenset[str]
    """Those whose outputs it shows; ``fc`` (the logits) always."""
    preprocess: Preprocess | None
    """What its manifest says; None for a graph without one."""
    classes: int
    pixels: int
    """Height and width of its images."""
    tensors: Mapping[str, str]
    """Quantized tensor to the block that it belongs to."""
    clipped: frozenset[str]
    """Blocks whose output it clips where the quantizer behind it would saturate."""
    tops: Mapping[str, NDArray[np.float32]]
    """Block to the largest value [C, 1, 1] or [1] of the quantizer that reads its output, in the network's unit."""

    def __call__(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> Seen:
        """Run one image: pixels [S, S, 3]."""
        ...

    def close(self) -> None:
        """Give back what it holds; calling it twice is harmless."""
        ...


def parse_side(text: str) -> SideName:
    """The side that ``text`` names; a path that exists is taken as it is, colons and all.

    Raises:
        UsageError: there is no such path, or a directory has no such part.
    """
    path, part = Path(text), "engine"
    if not _exists(path):
        head, colon, part = text.rpartition(":")
        if not colon or not _exists(Path(head)):
            raise UsageError(f"{text_of(text)} does not exist; {_WHERE}")
        path = Path(head)
        if part not in PARTS or not path.is_dir():
            hint = did_you_mean(part, list(PARTS))
            raise UsageError(f"{text_of(text)} names no part of an engine directory; {_WHERE}.{hint}")
    return SideName(path, cast(Part, part) if path.is_dir() else None)


def open_side(name: SideName) -> Side:
    """Load what ``name`` names.

    Raises:
        EngineError: the directory is damaged, or lacks the part.
        GraphError: the file is no graph that rescompile wrote.
        BackendUnavailable: the engine cannot run on this machine.
    """
    if name.part is None:
        return GraphSide(name.path, title=f"{name} (ONNX graph)", preprocess=_preprocess_beside(name.path))
    manifest = read_manifest(name.path)
    check_files(name.path, manifest)
    if name.part == "fp32":
        path, what = name.path / REFERENCE, "fp32 reference"
    else:
        path, what = name.path / GRAPH, "deployable graph"
    if not path.is_file():
        advice = "it was built with --no-reference; pass the fp32 graph as FILE.onnx" * (name.part == "fp32")
        raise EngineError(f"{path} is not there; {advice or 'build the engine again'}")
    if name.part == "engine":
        what = f"{manifest.precision} engine, {manifest.backend}"
    title = f"{name} ({what})"
    if name.part != "engine" or manifest.backend == "onnxruntime":
        return GraphSide(path, title=title, preprocess=manifest.preprocess)
    if manifest.backend == "openvino":
        return InnerEngineSide(name.path, manifest, title=title)
    return LogitsSide(name.path, manifest, title=title)


class GraphSide:
    """An ONNX graph, executed node by node as it is written.

    Raises:
        GraphError: it cannot be read, or its blocks do not have the names that rescompile gives them.
    """

    def __init__(self, path: Path, *, title: str, preprocess: Preprocess | None) -> None:
        proto = read_graph(path)
        outputs = block_outputs(proto)
        self.name, self.preprocess = title, preprocess
        self.blocks, self.visible = tuple(outputs), frozenset(outputs)
        self.classes = classes_of(proto, path)
        self._fed = Fed.of_graph(proto, path)
        self.default_preprocess = self._fed.default(outputs["stem"])
        self._quantized, self._full_range = quantized(proto), frozenset(offsets_of(proto))
        self.pixels = self._fed.side
        self.tensors: Mapping[str, str] = {tensor: block_of(tensor) for tensor in self._quantized}
        self.clipped = frozenset[str]()
        self.tops: Mapping[str, NDArray[np.float32]] = tops_of(proto, outputs)
        self._outputs = outputs
        wanted = [*outputs.values(), *self._quantized.values()]
        self._probe: Probe | None = Probe(proto.SerializeToString(), wanted, role=text_of(path), exactly=True)

    def __call__(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> Seen:
        """Run one image: pixels [S, S, 3]."""
        if self._probe is None:
            raise EngineError(f"{self.name} is closed; open it again")
        found = self._probe(self._fed.image(pixels, preprocess))
        saturated = {
            tensor: saturated_elements(found[output], full_range=tensor in self._full_range)
            for tensor, output in self._quantized.items()
        }
        return Seen({block: found[tensor] for block, tensor in self._outputs.items()}, saturated)

    def close(self) -> None:
        """Drop the session; calling it twice is harmless."""
        self._probe = None


class InnerEngineSide:
    """An OpenVINO engine with its block outputs made outputs of the model in memory; the files stay as they are."""

    def __init__(self, directory: Path, manifest: Manifest, *, title: str) -> None:
        proto = read_graph(directory / GRAPH)
        outputs = block_outputs(proto)
        self._engine: OpenVinoTensors | None = OpenVinoTensors(
            directory, manifest.batch, tuple(outputs.values())
        )
        self._outputs = {block: name for block, name in outputs.items() if name in self._engine.names}
        self._factors, self._fed = factors_of(proto), Fed.of_manifest(manifest)
        self.name = title
        self.preprocess: Preprocess | None = manifest.preprocess
        self.blocks, self.visible = tuple(outputs), frozenset(self._outputs)
        self.classes, self.pixels = len(manifest.classes), self._fed.side
        self.tensors: Mapping[str, str] = {}
        self.clipped = frozenset(b for b, name in self._outputs.items() if name in self._engine.clipped)
        self.tops: Mapping[str, NDArray[np.float32]] = tops_of(proto, outputs)

    def __call__(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> Seen:
        """Run one image: pixels [S, S, 3]."""
        if self._engine is None:
            raise EngineError(f"{self.name} is closed; open it again")
        found = self._engine(self._fed.image(pixels, preprocess))
        values = {
            block: in_original_unit(name, found[name], self._factors) for block, name in self._outputs.items()
        }
        return Seen(values)

    def close(self) -> None:
        """Drop the compiled model; calling it twice is harmless."""
        self._engine = None


class LogitsSide:
    """An engine whose backend keeps its inner tensors to itself: the logits alone."""

    def __init__(self, directory: Path, manifest: Manifest, *, title: str) -> None:
        self._engine: Engine = load(directory)
        self._fed = Fed.of_manifest(manifest)
        self.name = title
        self.preprocess: Preprocess | None = manifest.preprocess
        self.blocks = tuple(block_outputs(read_graph(directory / GRAPH)))
        self.visible = frozenset({"fc"})
        self.classes, self.pixels = len(manifest.classes), self._fed.side
        self.tensors: Mapping[str, str] = {}
        self.clipped = frozenset[str]()
        self.tops: Mapping[str, NDArray[np.float32]] = {}

    def __call__(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> Seen:
        """Run one image: pixels [S, S, 3]."""
        return Seen({"fc": self._engine(self._fed.image(pixels, preprocess)[None])[0]})

    def close(self) -> None:
        """Give back the engine; calling it twice is harmless."""
        self._engine.close()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _preprocess_beside(path: Path) -> Preprocess | None:
    """That of the engine directory in which the file lies, where it belongs to one."""
    if not (path.parent / MANIFEST).is_file():
        return None
    manifest = read_manifest(path.parent)
    return manifest.preprocess if path.name in manifest.files else None


def preprocess_of(sides: Sequence[Side]) -> Preprocess:
    """The preprocessing that all ``sides`` share; that of the network's family where no manifest tells.

    Raises:
        EngineError: two sides prepare images differently.
    """
    known = [(side.name, side.preprocess) for side in sides if side.preprocess is not None]
    if not known:
        return next(side.default_preprocess for side in sides if isinstance(side, GraphSide))
    first, chosen = known[0]
    for name, other in known[1:]:
        if other != chosen:
            differing = [
                key for key in chosen.__struct_fields__ if getattr(chosen, key) != getattr(other, key)
            ]
            raise EngineError(
                f"{first} and {name} prepare images differently ({', '.join(differing)}), so no image means the "
                "same to both; build both with the same preprocessing"
            )
    return chosen
