"""Where the error arises: each residual block's output in the deployable graph against the fp32 graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.metrics import decibels
from rescompile.report import BlockError

SQNR_CEILING_DB = 200.0
"""Stands for infinity, which JSON does not have; float32 itself ends near 150 dB."""

_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


def block_errors(
    reference_model: bytes,
    deployable_model: bytes,
    images: NDArray[np.float32],
    blocks: Mapping[str, str],
    *,
    deployable_images: NDArray[Any] | None = None,
) -> tuple[BlockError, ...]:
    """SQNR and cosine of every block's output over a handful of ``images``, in the order of ``blocks``.

    Args:
        reference_model: serialized fp32 ONNX graph.
        deployable_model: serialized ONNX graph with Q/DQ or half precision; executed as it is written.
        images: [N, 3, H, W], preprocessed; run one at a time, so memory holds the blocks of one image.
        blocks: block name to the name of its output tensor, which both graphs have (``layer1.0`` to
            ``layer1.0.relu``).
        deployable_images: the same images in the deployable graph's own layout, where that differs.

    Raises:
        GraphError: a graph lacks one of the tensors, or a block's outputs differ in shape.
    """
    tensors = tuple(blocks.values())
    reference = _Probe(reference_model, tensors, role="reference", exactly=False)
    deployable = _Probe(deployable_model, tensors, role="deployable", exactly=True)
    other_images = images if deployable_images is None else deployable_images
    if len(images) != len(other_images):
        raise ValueError(f"{len(images)} images for the reference graph, {len(other_images)} for the other")
    sums = {block: _Sums() for block in blocks}
    for image, other in zip(images, other_images, strict=True):
        expected, found = reference(image), deployable(other)
        for block, tensor in blocks.items():
            sums[block].add(block, expected[tensor], found[tensor])
    return tuple(entry.result(block) for block, entry in sums.items())


class _Sums:
    """Energies of one block's output over the images, in float64."""

    def __init__(self) -> None:
        self._signal = self._other = self._noise = self._product = 0.0

    def add(self, block: str, expected: NDArray[Any], found: NDArray[Any]) -> None:
        if expected.shape != found.shape:
            raise GraphError(
                f"block '{block}' has outputs of shape {list(expected.shape)} in the reference graph and "
                f"{list(found.shape)} in the deployable one: both graphs must come from one checkpoint"
            )
        r, o = expected.astype(np.float64), found.astype(np.float64)
        self._signal += float(np.vdot(r, r))
        self._other += float(np.vdot(o, o))
        self._product += float(np.vdot(r, o))
        self._noise += float(np.square(o - r).sum())

    def result(self, block: str) -> BlockError:
        sqnr = min(max(decibels(self._signal, self._noise), -SQNR_CEILING_DB), SQNR_CEILING_DB)
        norms = float(np.sqrt(self._signal) * np.sqrt(self._other))
        cosine = self._product / norms if norms > 0 else float(self._noise == 0)
        return BlockError(block, sqnr, min(max(cosine, -1.0), 1.0))


class _Probe:
    """An ONNX Runtime session that also returns the named inner tensors."""

    def __init__(self, model: bytes, tensors: Sequence[str], *, role: str, exactly: bool) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if exactly:
            # the optimizer replaces Q/DQ pairs by its own integer kernels, which round differently
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        exposed = _with_outputs(model, tensors, role=role)
        self._session = ort.InferenceSession(exposed, options, providers=["CPUExecutionProvider"])
        self._tensors = list(dict.fromkeys(tensors))
        entry = self._session.get_inputs()[0]
        self._input, self._dtype = entry.name, _NUMPY_TYPES[entry.type]
        self._batch = entry.shape[0] if isinstance(entry.shape[0], int) else 1

    def __call__(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Tensors of one image [...]; a graph with a fixed batch gets copies of it, of which one counts."""
        batch = np.repeat(image[None].astype(self._dtype), self._batch, axis=0)
        outputs = self._session.run(self._tensors, {self._input: batch})
        return {name: array[0] for name, array in zip(self._tensors, outputs, strict=True)}


def _with_outputs(model: bytes, tensors: Sequence[str], *, role: str) -> bytes:
    """``model`` with ``tensors`` as further outputs; ONNX Runtime infers their types."""
    import onnx

    proto = onnx.load_model_from_string(model)
    known = {name for node in proto.graph.node for name in node.output}
    present = {output.name for output in proto.graph.output}
    for tensor in dict.fromkeys(tensors):
        if tensor not in known:
            raise GraphError(
                f"the {role} graph has no tensor '{tensor}': block outputs keep their names from export to "
                "engine, so pass graphs that rescompile made"
            )
        if tensor not in present:
            proto.graph.output.append(onnx.ValueInfoProto(name=tensor))
    exposed: bytes = proto.SerializeToString()
    return exposed
