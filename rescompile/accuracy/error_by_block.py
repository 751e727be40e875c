"""Error by block: each residual block's output in the deployable graph against the fp32 graph.

Channels that equalization divided are multiplied again first, so that both sides have the same unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.onnxruntime import reference_session
from rescompile.errors import GraphError
from rescompile.graph.shared.metadata import (
    factors_of,
    in_original_unit,
    offsets_of,
    real_channels,
    without_offset,
)
from rescompile.metrics import decibels
from rescompile.report import BlockError

if TYPE_CHECKING:
    import onnx

SQNR_CEILING_DB = 200.0
"""In place of infinity, which JSON does not have; float32 itself ends near 150 dB."""


def block_errors(
    reference_model: bytes | onnx.ModelProto,
    deployable_model: bytes | onnx.ModelProto,
    images: NDArray[np.float32],
    blocks: Mapping[str, str],
    *,
    deployable_images: NDArray[Any] | None = None,
) -> tuple[BlockError, ...]:
    """SQNR and cosine of every block's output over a handful of ``images``, in the order of ``blocks``.

    Args:
        reference_model: fp32 ONNX graph, serialized or in memory.
        deployable_model: the same with Q/DQ or half precision; executed as it is written.
        images: [N, 3, H, W], preprocessed; run one at a time, so memory holds the blocks of one image.
        blocks: block name to its output tensor, which both graphs have (``layer1.0`` to ``layer1.0.relu``).
        deployable_images: the same images in the deployable graph's own layout, where that differs.

    Raises:
        GraphError: a graph lacks one of the tensors, or a block's outputs differ in shape.
    """
    tensors = tuple(blocks.values())
    reference = Probe(reference_model, tensors, role="reference", exactly=False)
    deployable = Probe(deployable_model, tensors, role="deployable", exactly=True)
    other_images = images if deployable_images is None else deployable_images
    if len(images) != len(other_images):
        raise ValueError(f"{len(images)} images for the reference graph, {len(other_images)} for the other")
    sums = {block: Sums("the reference graph", "the deployable one") for block in blocks}
    for image, other in zip(images, other_images, strict=True):
        expected, found = reference(image), deployable(other)
        for block, tensor in blocks.items():
            sums[block].add(block, expected[tensor], found[tensor])
    return tuple(entry.result(block) for block, entry in sums.items())


class Sums:
    """Energies of one block's output over the images, in float64; ``first`` and ``other`` name the graphs."""

    def __init__(self, first: str, other: str) -> None:
        self._names = (first, other)
        self._signal = self._other = self._noise = self._product = 0.0

    def add(self, block: str, expected: NDArray[Any], found: NDArray[Any]) -> None:
        """Count the outputs for one image.

        Raises:
            GraphError: they differ in shape.
        """
        if expected.shape != found.shape:
            first, other = self._names
            raise GraphError(
                f"block '{block}' has outputs of shape {list(expected.shape)} in {first} and "
                f"{list(found.shape)} in {other}: both must come from one checkpoint"
            )
        r, o = expected.astype(np.float64), found.astype(np.float64)
        with np.errstate(invalid="ignore"):  # an overflow is infinite here, and the sums then say so
            self._signal += float(np.vdot(r, r))
            self._other += float(np.vdot(o, o))
            self._product += float(np.vdot(r, o))
            self._noise += float(np.square(o - r).sum())

    @property
    def finite(self) -> bool:
        """Whether every value of both graphs was finite."""
        return bool(np.isfinite(self._signal) and np.isfinite(self._other))

    def result(self, block: str) -> BlockError:
        """SQNR within +-``SQNR_CEILING_DB``, and cosine; the worst of both where a value is not finite."""
        if not self.finite:
            return BlockError(block, -SQNR_CEILING_DB, 0.0)
        sqnr = min(max(decibels(self._signal, self._noise), -SQNR_CEILING_DB), SQNR_CEILING_DB)
        norms = float(np.sqrt(self._signal) * np.sqrt(self._other))
        cosine = self._product / norms if norms > 0 else float(self._noise == 0)
        return BlockError(block, sqnr, min(max(cosine, -1.0), 1.0))


class Probe:
    """An ONNX graph that returns the named inner tensors, in the fp32 network's own unit; ``role`` is for messages.

    Raises:
        GraphError: the graph lacks a tensor, or its metadata are damaged.
    """

    def __init__(
        self, model: bytes | onnx.ModelProto, tensors: Sequence[str], *, role: str, exactly: bool
    ) -> None:
        import onnx

        proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
        self._factors, self._offsets = factors_of(proto), offsets_of(proto)
        self._channels = real_channels(proto)
        known = {name for node in proto.graph.node for name in node.output}
        for tensor in tensors:
            if tensor not in known:
                raise GraphError(
                    f"the {role} graph has no tensor '{tensor}': block outputs keep their names from export to "
                    "engine, so pass graphs that rescompile made"
                )
        # the optimizer replaces Q/DQ pairs by its own integer kernels, which round differently
        self._session = reference_session(model, optimize=not exactly, outputs=list(dict.fromkeys(tensors)))
        entry = proto.graph.input[0].type.tensor_type
        self._dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.elem_type)
        self._batch = entry.shape.dim[0].dim_value or 1

    def __call__(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Tensors of one image [...]; a graph with a fixed batch gets copies of it."""
        batch = np.repeat(image[None].astype(self._dtype), self._batch, axis=0)
        found = self._session.tensors(batch)
        return {name: self._in_network(name, array[0]) for name, array in found.items()}

    def _in_network(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """``values`` [C, ...] of one tensor in the network's unit: without constant channels, offsets and factors."""
        real = without_offset(name, values[: self._channels.get(name)], self._offsets)
        return in_original_unit(name, real, self._factors)
