"""Anything that can be compared by block: an fp32 reference, a deployable graph or an engine.

A comparand takes the pixels of one image and returns the tensors at the ends of its blocks, in the fp32 network's own
unit. The user names one by:

    DIR  DIR:engine    the engine of an engine directory
    DIR:graph          its deployable graph, model.onnx
    DIR:fp32           its fp32 reference, reference.onnx
    FILE.onnx          any graph that rescompile wrote
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from calibration.file_names import text_of
from calibration.preprocess import Preprocess
from rescompile.accuracy.error_by_block import Probe
from rescompile.accuracy.graph_description import (
    InputSpec,
    classes_of,
    quantized,
    saturated_elements,
    tops_of,
)
from rescompile.backends.openvino.runner import OpenVinoTensors
from rescompile.errors import EngineError, UsageError, did_you_mean
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.metadata import factors_of, in_original_unit, offsets_of
from rescompile.graph.shared.onnx_file import read_graph
from rescompile.graph.shared.topology import block_outputs
from rescompile.manifest import (
    GRAPH,
    MANIFEST,
    ONNXRUNTIME_MODEL,
    REFERENCE,
    Manifest,
    OutputSpec,
    read_manifest,
)
from rescompile.runtime.integrity import CheckedEngine, read_engine
from rescompile.runtime.loading import load_checked

Part = Literal["fp32", "graph", "engine"]
PARTS: tuple[Part, ...] = get_args(Part)

_REMEDY = "pass an engine directory, DIR:fp32, DIR:graph, DIR:engine or FILE.onnx"


@dataclass(frozen=True)
class ComparandName:
    """A comparand as the user wrote it; ``part`` is None for a file."""

    path: Path
    part: Part | None

    def __str__(self) -> str:
        text = text_of(self.path)
        return text if self.part is None else f"{text}:{self.part}"


@dataclass(frozen=True)
class Observation:
    """The tensors of a comparand for one image."""

    values: Mapping[str, NDArray[Any]]
    """Block to its output [C, H, W], or logits [classes], in the fp32 network's unit."""
    saturated: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Quantized tensor to the number of its elements at +-127 or -128, and of all its elements."""


@dataclass(frozen=True, kw_only=True)
class Comparand:
    """One of the two that are compared."""

    name: str
    """The user's name for it, and its kind."""
    blocks: Mapping[str, str]
    """Block to the tensor at its end, in the order of execution: stem, every residual block, fc."""
    visible: frozenset[str]
    """The blocks whose outputs it shows; ``fc`` (the logits) always."""
    preprocess: Preprocess | None
    """The preprocessing in its manifest; None for a graph without one."""
    classes: int
    """Classes, or channels of another output."""
    output: OutputSpec | None
    """Meaning of its output in its manifest; None for a graph without one."""
    input: InputSpec
    observe: Callable[[NDArray[Any]], Observation]
    """Runs one image in the layout and dtype of ``input``."""
    close: Callable[[], None] = lambda: None
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Quantized tensor to the block that it belongs to."""
    clipped: frozenset[str] = frozenset()
    """Blocks whose output it clips where the quantizer behind it would saturate."""
    tops: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Block to the largest value of the quantizer that reads its output; see ``tops_of``."""

    def __call__(self, pixels: NDArray[np.uint8], preprocess: Preprocess) -> Observation:
        """Run one image: pixels [S, S, 3]."""
        return self.observe(self.input.image(pixels, preprocess))


def parse_comparand(text: str) -> ComparandName:
    """The comparand that ``text`` names; a path that exists is taken as it is, colons and all.

    Raises:
        UsageError: there is no such path, or a directory does not have such a part.
    """
    path, part = Path(text), "engine"
    if not _exists(path):
        head, colon, part = text.rpartition(":")
        if not colon or not _exists(Path(head)):
            raise UsageError(f"{text_of(text)} does not exist; {_REMEDY}")
        path = Path(head)
        if part not in PARTS or not path.is_dir():
            hint = did_you_mean(part, list(PARTS))
            raise UsageError(f"{text_of(text)} does not name a part of an engine directory; {_REMEDY}.{hint}")
    return ComparandName(path, cast(Part, part) if path.is_dir() else None)


def open_comparand(name: ComparandName) -> Comparand:
    """Load the comparand that ``name`` names.

    Raises:
        EngineError: the directory is damaged, or lacks the part.
        GraphError: the file is not a graph that rescompile wrote.
        BackendUnavailable: the engine cannot run on this machine.
    """
    if name.part is None:
        return graph_comparand(
            name.path, None, title=f"{name} (ONNX graph)", manifest=_manifest_beside(name.path)
        )
    checked = read_engine(name.path, also=(REFERENCE, GRAPH))
    manifest, part = checked.manifest, REFERENCE if name.part == "fp32" else GRAPH
    path = name.path / part
    if part not in manifest.files:
        advice = "it was built with --no-reference; pass the fp32 graph as FILE.onnx" * (name.part == "fp32")
        raise EngineError(f"{path} is not there; {advice or 'build the engine again'}")
    kind = {
        "fp32": "fp32 reference",
        "graph": "deployable graph",
        "engine": f"{manifest.precision} engine, {manifest.backend}",
    }[name.part]
    title = f"{name} ({kind})"
    is_graph = manifest.backend == "onnxruntime" and ONNXRUNTIME_MODEL not in manifest.files
    if name.part != "engine" or is_graph:
        return graph_comparand(path, checked.files.read(part), title=title, manifest=manifest)
    opened = openvino_comparand if manifest.backend == "openvino" else logits_comparand
    return opened(checked, title=title)


def graph_comparand(path: Path, content: bytes | None, *, title: str, manifest: Manifest | None) -> Comparand:
    """The ONNX graph of ``path``, executed node by node as it is written; ``content`` is that of the file.

    Raises:
        GraphError: it cannot be read, or its blocks do not have the names that rescompile gives them.
    """
    proto = read_graph(path, content)
    blocks, integers, full_range = block_outputs(proto), quantized(proto), offsets_of(proto)
    own_size = None if manifest is None else manifest.preprocess.size
    classes, taken = classes_of(proto, path), InputSpec.of_graph(proto, path, own_size)
    wanted = [*blocks.values(), *integers.values()]
    run = Probe(proto, wanted, role=text_of(path), exactly=True)

    def observe(image: NDArray[Any]) -> Observation:
        found = run(image)
        saturated = {
            tensor: saturated_elements(found[integer], full_range=tensor in full_range)
            for tensor, integer in integers.items()
        }
        return Observation({block: found[tensor] for block, tensor in blocks.items()}, saturated)

    return Comparand(
        name=title,
        blocks=blocks,
        visible=frozenset(blocks),
        preprocess=manifest.preprocess if manifest else None,
        classes=classes,
        output=manifest.outputs[0] if manifest else None,
        input=taken,
        observe=observe,
        tensors={tensor: block_of(tensor) for tensor in integers},
        tops=tops_of(proto, blocks),
    )


def openvino_comparand(checked: CheckedEngine, *, title: str) -> Comparand:
    """An OpenVINO engine whose block outputs are added to the outputs of the model in memory; files do not change."""
    manifest, files = checked.manifest, checked.files
    proto = read_graph(files.path(GRAPH), files.read(GRAPH))
    blocks, factors = block_outputs(proto), factors_of(proto)
    run = OpenVinoTensors(files, manifest, tuple(blocks.values()))
    visible = {block: tensor for block, tensor in blocks.items() if tensor in run.names}

    def observe(image: NDArray[Any]) -> Observation:
        found = run(image)
        return Observation(
            {block: in_original_unit(tensor, found[tensor], factors) for block, tensor in visible.items()}
        )

    return Comparand(
        name=title,
        blocks=blocks,
        visible=frozenset(visible),
        preprocess=manifest.preprocess,
        classes=manifest.outputs[0].shape[1],
        output=manifest.outputs[0],
        input=InputSpec.of_manifest(manifest),
        observe=observe,
        clipped=frozenset(block for block, tensor in visible.items() if tensor in run.clipped),
        tops=tops_of(proto, blocks),
    )


def logits_comparand(checked: CheckedEngine, *, title: str) -> Comparand:
    """An engine whose backend does not show inner tensors: its logits alone."""
    engine, manifest, files = load_checked(checked), checked.manifest, checked.files
    return Comparand(
        name=title,
        blocks=block_outputs(read_graph(files.path(GRAPH), files.read(GRAPH))),
        visible=frozenset({"fc"}),
        preprocess=manifest.preprocess,
        classes=manifest.outputs[0].shape[1],
        output=manifest.outputs[0],
        input=InputSpec.of_manifest(manifest),
        observe=lambda image: Observation({"fc": engine(image[None])[0]}),
        close=engine.close,
    )


def preprocess_of(comparands: Sequence[Comparand]) -> Preprocess:
    """The preprocessing that all ``comparands`` share; the usual one of the network where no manifest says it.

    Raises:
        EngineError: two of them prepare images differently.
    """
    known = [(each.name, each.preprocess) for each in comparands if each.preprocess is not None]
    if not known:
        return comparands[0].input.default(comparands[0].blocks["stem"])
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


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _manifest_beside(path: Path) -> Manifest | None:
    """The manifest of the engine directory that the file belongs to, where there is one."""
    if not (path.parent / MANIFEST).is_file():
        return None
    manifest = read_manifest(path.parent)
    return manifest if path.name in manifest.files else None
