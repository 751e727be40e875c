"""Checks an INT8 engine block by block: from the deployable graph's values, each block must give the graph's values.

End to end an engine of a deep network may differ from its deployable graph by as much as quantization does, because a
single value that is rounded the other way spreads. Within one block it cannot: only sums that lie on a rounding tie
differ there. So this check finds a wrong layer, however wide the limit of the golden answers is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.backends.base import Backend, RunsParts
from rescompile.backends.onnxruntime import reference_session
from rescompile.errors import EngineError
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import consumers, made_by
from rescompile.graph.shared.metadata import offsets_of, without_offset
from rescompile.graph.shared.names import SHAPES

IMAGES = 2
"""Images that the blocks are fed with."""
MOST_STEPS = 0.2
"""Largest RMS of a block's error in steps of its quantizer. Few sums lie on a border, so right engines have 0 to 0.04,
and up to 0.12 where a gate spreads one step over a channel; a scale that is wrong by 3 % gives 0.4."""
SINGLE_STEPS = 4
"""Values that may besides be one step off, which count in blocks of few values."""
MOST_RMS = 2e-2
"""Largest RMS of the error of a block that ends in floating point, relative to its values."""


@dataclass(frozen=True)
class Boundary:
    """A tensor that other blocks read, or that the network returns."""

    name: str
    restored: str
    """The tensor that its readers see: the dequantized one, or itself if nothing quantizes it."""
    cut: str
    """The tensor to cut at: in front of a max pool, because backends move the rounding in front of pools."""
    quantizer: tuple[NDArray[np.floating], NDArray[np.integer]] | None
    """Scale and zero point."""

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """``values`` through the quantizer and back."""
        if self.quantizer is None:
            return values
        scale, zero = self.quantizer[0].astype(np.float32), int(self.quantizer[1])
        bounds = np.iinfo(self.quantizer[1].dtype)
        integers = np.clip(np.rint(values / scale) + zero, bounds.min, bounds.max)
        rounded: NDArray[np.float32] = ((integers - zero) * scale).astype(np.float32)
        return rounded


Values = Mapping[str, NDArray[np.float32]]
"""Tensors by name."""


def compared_tensors(backend: Backend, model: onnx.ModelProto) -> list[str]:
    """The tensors of ``model`` that ``check_blocks`` compares or cuts at; none where it checks nothing."""
    if not isinstance(backend, RunsParts) or not _quantizes(model):
        return []
    return _names(boundaries(read(model)))


def check_blocks(
    directory: Path,
    backend: Backend,
    model: onnx.ModelProto,
    images: NDArray[Any],
    known: Values | None = None,
) -> int:
    """Check the engine in ``directory`` against ``model``, its deployable graph, on the first of ``images`` [N, ...].

    ``known`` are the values of the ``compared_tensors`` for the images, as the graph is written. Returns how many
    tensors were compared: none where the backend cannot run parts of its engines, or the graph has no quantizers, whose
    golden answers are tight anyway.

    Raises:
        EngineError: a block gives other values; the message names the first.
        BackendError: the backend cannot run a part.
    """
    if not isinstance(backend, RunsParts) or not _quantizes(model):
        return 0
    parts, graph = backend.parts(directory), read(model)
    found = [each for each in boundaries(graph) if {each.name, each.cut} <= parts.names]
    images = images[:IMAGES]
    inputs = {graph.inputs[0].name: images}
    if known is None:
        values = _reference(model, _names(found), images)
    else:
        values = {name: known[name][:IMAGES] for name in _names(found)}
    faults: dict[str, str] = {}
    for group in _apart(graph, found):
        given = {each.cut: _held(each, values[each.cut], model) for each in found if each not in group}
        # a signed tensor's dequantized form may be gone, because its readers take it apart; then its sum is compared
        whole = {each.name for each in group if each.restored in parts.names}
        wanted = {each.name: each.restored if each.name in whole else each.name for each in group}
        answers = parts.run(inputs | given, tuple(wanted.values()))
        for each in group:
            expected = values[each.name]
            if each.name in whole:
                expected = _held(each, expected, model)
            if fault := _fault(each, expected, answers[wanted[each.name]]):
                faults[each.name] = fault
    if first := next((each.name for each in found if each.name in faults), None):
        raise EngineError(
            f"block '{block_of(first)}' gives other values in the {backend.name} engine than in the deployable graph "
            f"({faults[first]}): please report this network; until it is fixed, pass --backend onnxruntime"
        )
    return len(found)


def boundaries(graph: gs.Graph) -> list[Boundary]:
    """All tensors of a deployable ``graph`` that two blocks share or that it returns, in the order of execution."""
    roots = {}
    for node in graph.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear") or node.name.startswith(SHAPES):
            continue
        for tensor in node.inputs:
            root = _undone(tensor)
            if root.inputs and _meet(root.inputs[0], node):
                roots[root.name] = root
    for output in graph.outputs:
        if made_by(output) != "Identity":
            roots[output.name] = _undone(output)
    order = [tensor.name for node in graph.nodes for tensor in node.outputs]
    return [_boundary(roots[name]) for name in order if name in roots]


def _meet(maker: gs.Node, reader: gs.Node) -> bool:
    """Whether a block, or the network, ends between ``maker`` and ``reader``."""
    if maker.name.startswith(SHAPES):
        return False
    return reader.op == "Identity" or block_of(maker.name) != block_of(reader.name)


def _undone(tensor: gs.Tensor) -> gs.Tensor:
    """``tensor`` in front of Q and DQ."""
    while made_by(tensor) in ("QuantizeLinear", "DequantizeLinear"):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _boundary(tensor: gs.Tensor) -> Boundary:
    readers = consumers(tensor)
    quantizers = [node for node in readers if node.op == "QuantizeLinear"]
    if not quantizers or len(quantizers) < len(readers):
        return Boundary(tensor.name, tensor.name, tensor.name, None)
    (restored,) = (node.outputs[0].name for node in consumers(quantizers[0].outputs[0]))
    scale, zero = (constant.values for constant in quantizers[0].inputs[1:3])
    pooled = tensor.inputs[0].inputs[0] if made_by(tensor) == "MaxPool" else None
    cut = pooled if pooled is not None and len(consumers(pooled)) == 1 and pooled.inputs else tensor
    return Boundary(tensor.name, restored, cut.name, (scale, zero))


def _quantizes(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def _names(found: Sequence[Boundary]) -> list[str]:
    return list(dict.fromkeys(name for each in found for name in (each.name, each.cut)))


def _reference(model: onnx.ModelProto, names: list[str], images: NDArray[Any]) -> Values:
    """The values of the tensors ``names``, as the graph is written."""
    session = reference_session(model, optimize=False, outputs=names)
    return {name: values.astype(np.float32) for name, values in session.tensors(images).items()}


def _held(each: Boundary, values: NDArray[np.float32], model: onnx.ModelProto) -> NDArray[np.float32]:
    """``values`` as readers of the boundary see them, with the zero of full range undone."""
    held: NDArray[np.float32] = without_offset(each.name, each.rounded(values), offsets_of(model))
    return held


def _apart(graph: gs.Graph, found: Sequence[Boundary]) -> list[list[Boundary]]:
    """The boundaries in groups, so that no boundary is computed from another one of its group without a cut between."""
    tensors, names = graph.tensors(), {each.name for each in found}
    colors: dict[str, int] = {}
    for each in found:
        taken, todo, seen = set[int](), list(tensors[each.name].inputs), set[int]()
        while todo:
            node = todo.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            for tensor in node.inputs:
                if tensor.name in names:
                    taken.add(colors[tensor.name])
                else:
                    todo += tensor.inputs
        colors[each.name] = next(color for color in range(len(taken) + 1) if color not in taken)
    return [[each for each in found if colors[each.name] == color] for color in sorted(set(colors.values()))]


def _fault(each: Boundary, expected: NDArray[np.float32], found: NDArray[np.float32]) -> str | None:
    """The fault of ``found``; None if it is right."""
    expected = expected[:, : found.shape[1]]  # constant channels come last
    if each.quantizer is None:
        unit, allowed, what = _rms(expected), MOST_RMS, "the RMS of its values"
    else:
        unit, what = float(each.quantizer[0]), "its quantization step"
        allowed = math.sqrt(MOST_STEPS**2 + SINGLE_STEPS / expected.size)
    error = _rms(found - expected)
    if error <= allowed * unit:  # False for NaN
        return None
    return f"the RMS of the error of '{each.name}' is {error / (unit or 1):.3g} times {what}, at most {allowed:.3g}"


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
