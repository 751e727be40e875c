"""The deployable graph as fused steps, and the weights as the kernels read them.

A convolution's step takes in what follows it: the residual add, the ReLU, the stem's max pool and the quantizer. In
INT8 a step computes, with integers q, scales s and channel k,

    q_out = int8(sum(q_in * q_w) * (s_in * s_w[k] / s_out) + b[k] / s_out + q_res * (s_res / s_out))

which is the graph's own Q/DQ arithmetic, with its factors multiplied out once in fp64 and stored as fp32.

A tensor of full range has no ReLU in front of its quantizer, which saturates at -128 instead. What its zero adds to the
sums of its readers is in their biases already (``graph.full_range``), except for convolutions that pad it: these have
``zero_sums`` in place of the graph's constant channels. A stem that reads pixels pads the image before it undoes the
normalization (``graph.pixels``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch

from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.packed_image import PIXEL, pack_weight
from fused_kernels.operands.zero_point import zero_sums
from fused_kernels.ops.head import head_scales
from fused_kernels.ops.inference import requantization
from rescompile.backends.triton.lowering.fusion import (
    FusedConvolution,
    Operands,
    fused_convolution,
    operands_of,
    require_pool,
)
from rescompile.backends.triton.lowering.graph import (
    MIXED,
    Array,
    Graph,
    behind_quantizer,
    constant,
    producer,
    refused,
    scale_of,
    weight_of,
)
from rescompile.backends.triton.lowering.preprocessing import read_preprocessing
from rescompile.backends.triton.lowering.shortcut import Plane, ends_shortcut, read_shortcut
from rescompile.backends.triton.steps import Convolution, Head, Stem, Step, Widen
from rescompile.graph.shared.constant_channels import without_constant_channels
from rescompile.graph.shared.links import MOVEMENT_OPS, QUANTIZER_OPS
from rescompile.graph.shared.metadata import ZERO_POINT

KNOWN = {
    "Conv", "Gemm", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Cast", "Transpose", "Mul", *MOVEMENT_OPS,
    *QUANTIZER_OPS,
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network as steps, each of which reads what earlier ones wrote."""

    steps: tuple[Step, ...]
    weights: dict[str, Array]
    """Convolutions as [K, R, S, C], the classifier as [K, C]; ``operands.packed_image`` packs the stem's."""


def lower(model: onnx.ModelProto, plane: Plane) -> Network:
    """Steps and weights of a deployable graph for images of [H, W] = ``plane``.

    Raises:
        BackendError: no kernel computes a node; the message names it.
    """
    return _Lowering(Graph(without_constant_channels(model)), plane).run()


class _Lowering:
    def __init__(self, graph: Graph, plane: Plane) -> None:
        self.graph = graph
        self.weights: dict[str, Array] = {}
        self.image_plane = plane
        self.planes: dict[str, Plane] = {}
        """Height and width of the tensors that steps made so far."""
        self.covered: set[int] = set()
        """Identities of the nodes that steps compute."""

    def run(self) -> Network:
        for node in self.graph.nodes:
            if node.op not in KNOWN:
                raise refused(node, "no fused kernel computes it")
        steps = tuple(self._steps())
        for node in self.graph.nodes:
            if node.op not in QUANTIZER_OPS and id(node) not in self.covered:
                raise refused(node, "no fused kernel computes it here")
        return Network(steps, self.weights)

    def _steps(self) -> list[Step]:
        """All steps in the order of their last nodes, so that everything that a step reads is there."""
        ends: dict[int, FusedConvolution | None] = {}
        image = {id(node) for node in self.graph.image_path()}
        for node in self.graph.nodes:
            if node.op == "Conv":
                fused = fused_convolution(self.graph, node)
                ends[id(fused.nodes[-1])] = fused
            elif node.op == "Gemm" or (id(node) not in image and ends_shortcut(self.graph, node)):
                ends[id(node)] = None
        return [self._step(node, ends[id(node)]) for node in self.graph.nodes if id(node) in ends]

    def _step(self, end: gs.Node, fused: FusedConvolution | None) -> Step:
        if fused is None:
            return self._head(end) if end.op == "Gemm" else self._widen(end)
        self._cover(*fused.nodes)
        try:
            source = behind_quantizer(fused.conv.inputs[0])
            return self._convolution(fused) if source.name in self.planes else self._stem(fused)
        except ValueError as error:
            # the kernels' own message names shapes, ours the node
            raise refused(fused.conv, str(error)) from error

    def _stem(self, fused: FusedConvolution) -> Step:
        first, scale = behind_quantizer(fused.conv.inputs[0])
        image = read_preprocessing(self.graph, first)
        self._cover(*image.nodes)
        self.weights |= image.weights
        operands = operands_of(fused.conv)
        conv, weight = operands.window.conv(), operands.weight
        relu, pool = fused.has("Relu"), fused.has("MaxPool")
        if fused.residual is not None or not (relu or weight.scales is not None):
            raise refused(
                fused.conv, "the first convolution must be followed by a ReLU alone, or by INT8's quantizer"
            )
        if weight.values.shape[1] > PIXEL:
            raise refused(fused.conv, f"an image must have at most {PIXEL} channels")
        p, q = conv.output_size(*(side + 2 * image.margin for side in self.image_plane))
        if pool:
            require_pool(fused.nodes[-1])
            p, q = Conv(3, 3, 2, 1).output_size(p, q)
        self.planes[fused.output.name] = p, q
        self._store(fused, operands, scale, None)
        self.weights[f"{fused.name}.weight"] = pack_weight(torch.tensor(weight.values), conv).numpy()
        return Stem(
            name=fused.name,
            output=fused.output.name,
            window=operands.window,
            pool=pool,
            normalized=image.normalized,
            image_scale=scale,
            rest=image.rest,
            relu=relu,
            margin=image.margin,
            undone=image.undone,
        )

    def _convolution(self, fused: FusedConvolution) -> Step:
        source, scale = behind_quantizer(fused.conv.inputs[0])
        operands = operands_of(fused.conv)
        window, weight = operands.window, operands.weight
        if fused.has("MaxPool"):
            raise refused(fused.nodes[-1], "a max pool can run in the stem only")
        relu, residual, residual_scale = fused.has("Relu"), None, None
        if fused.residual is not None:
            if not (relu or weight.scales is not None):
                raise refused(
                    fused.nodes[-1], "a residual add must be followed by a ReLU, or by INT8's quantizer"
                )
            tensor, residual_scale = behind_quantizer(fused.residual)
            self._plane(tensor, fused.conv)
            residual = str(tensor.name)
        self.planes[fused.output.name] = window.conv().output_size(*self.planes[source.name])
        ratio = self._store(fused, operands, scale, residual_scale)
        stored = np.ascontiguousarray(weight.values.transpose(0, 2, 3, 1))
        self.weights[f"{fused.name}.weight"] = stored
        padded = window.padding > 0 and self.graph.offset_of(source) > 0
        if padded:
            sums = zero_sums(torch.tensor(weight.values), ZERO_POINT)
            self.weights[f"{fused.name}.zero_sums"] = sums.numpy()
        output = fused.output.name
        return Convolution(fused.name, source.name, output, window, relu, residual, ratio, padded)

    def _store(
        self, fused: FusedConvolution, operands: Operands, scale: float | None, residual_scale: float | None
    ) -> float | None:
        """Store bias and scale of a convolution; returns the factor of its residual in INT8."""
        out, scales = scale_of(fused.output), operands.weight.scales
        quantized = {scale is not None, out is not None, scales is not None}
        if fused.residual is not None:
            quantized.add(residual_scale is not None)
        if len(quantized) > 1:
            raise refused(
                fused.conv,
                f"its input, weight, residual and output must all be quantized, or none of them; {MIXED}",
            )
        name, bias = fused.name, torch.from_numpy(operands.bias.astype(np.float32))
        if scale is None or out is None or scales is None:
            self.weights[f"{name}.bias"] = bias.numpy()
            return None
        made = requantization(scale, torch.tensor(scales), out, bias, residual_scale)
        self.weights[f"{name}.scale"], self.weights[f"{name}.bias"] = made.scale.numpy(), made.bias.numpy()
        return made.residual_scale

    def _widen(self, end: gs.Node) -> Step:
        found = read_shortcut(self.graph, end, lambda tensor: self._plane(tensor, end))
        self._cover(*found.nodes)
        h, w = self._plane(found.source, end)
        output, stride = str(end.outputs[0].name), found.stride
        self.planes[output] = -(-h // stride), -(-w // stride)
        source = found.source.name
        return Widen(end.name, source, output, stride, found.before, found.after, found.zero_point)

    def _head(self, gemm: gs.Node) -> Step:
        pooled, pool_scale = behind_quantizer(gemm.inputs[0])
        flatten = producer(pooled)
        pool = None if flatten is None else producer(flatten.inputs[0])
        if flatten is None or pool is None or pool.op != "GlobalAveragePool":
            raise refused(gemm, "the classifier must read a global average pool")
        cast = self.graph.only_reader(gemm.outputs[0])
        self._cover(pool, flatten, gemm, *([] if cast is None else [cast]))
        source, scale = behind_quantizer(pool.inputs[0])
        weight, bias, attrs = weight_of(gemm.inputs[1]), constant(gemm.inputs[2]), gemm.attrs
        plain = attrs.get("transB", 0) == 1 and attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0
        if weight is None or bias is None or not plain:
            raise refused(gemm, "the classifier must have constant weights [classes, channels] and a bias")
        if len({scale is not None, pool_scale is not None, weight.scales is not None}) > 1:
            raise refused(
                gemm,
                f"the pool's input, its output and the weight must all be quantized, or none of them; {MIXED}",
            )
        name = gemm.name
        self.weights[f"{name}.weight"] = np.ascontiguousarray(weight.values)
        self.weights[f"{name}.bias"] = bias.astype(np.float32)
        if scale is None or pool_scale is None or weight.scales is None:
            return Head(name, source.name, None)
        h, w = self._plane(source, gemm)
        factor, scales = head_scales(scale, h * w, pool_scale, torch.tensor(weight.scales))
        self.weights[f"{name}.scale"] = scales.numpy()
        return Head(name, source.name, factor)

    def _plane(self, tensor: gs.Tensor, reader: gs.Node) -> Plane:
        """Height and width of a tensor that an earlier step has made."""
        if tensor.name not in self.planes:
            raise refused(reader, f"no step makes '{tensor.name}', which it reads")
        return self.planes[tensor.name]

    def _cover(self, *nodes: gs.Node) -> None:
        self.covered |= {id(node) for node in nodes}
