"""From the deployable graph to fused steps and the weights as kernels read them.

A convolution takes in what follows it: the residual add, the ReLU, the stem's max pool and the quantizer. What a step
computes in INT8 is, with integers q, scales s and channel k,

    q_out = int8(sum(q_in * q_w) * (s_in * s_w[k] / s_out) + b[k] / s_out + q_res * (s_res / s_out))

which is the graph's own Q/DQ arithmetic, its factors multiplied out once, in fp64, and stored as fp32. A tensor of full
range has no ReLU in front of its quantizer, which saturates at -128 in its place; what its zero adds to the sums of
those who read it is in their biases already (``graph.full_range``), but for convolutions that pad it: in place of the
graph's constant channels they have ``zero_sums``. A stem that reads pixels pads the image before it undoes the
normalization (``graph.pixels``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.packed_image import PIXEL, pack_weight
from fused_kernels.operands.zero_point import zero_sums
from fused_kernels.ops.head import head_scales
from fused_kernels.ops.inference import requantization
from rescompile.backends.triton.graph import MIXED, Array, Graph, Weight, attributes, refused, unused
from rescompile.backends.triton.groups import Group, conv_of, group_of, operands_of, require_pool
from rescompile.backends.triton.image import read_image
from rescompile.backends.triton.movement import MOVEMENT_OPS, Plane, ends_movement, read_movement
from rescompile.backends.triton.steps import (
    Convolution,
    Head,
    Stem,
    Step,
    Widen,
)
from rescompile.graph.constant_channels import without_constant_channels
from rescompile.graph.offsets import ZERO_POINT

KNOWN = {
    "Conv", "Gemm", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "QuantizeLinear", "DequantizeLinear",
    "Cast", "Transpose", "Mul", *MOVEMENT_OPS,
}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network as steps, each of which reads what earlier ones wrote."""

    steps: tuple[Step, ...]
    weights: dict[str, Array]
    """Convolutions as [K, R, S, C], the stem's as ``operands.packed_image`` packs it, the classifier as [K, C]."""


def lower(model: onnx.ModelProto, plane: Plane) -> Network:
    """Steps and weights of a deployable graph for images of [H, W] = ``plane``.

    Raises:
        BackendError: the graph holds what no kernel computes; the message names the node.
    """
    return _Lowering(Graph(without_constant_channels(model)), plane).run()


class _Lowering:
    def __init__(self, graph: Graph, plane: Plane) -> None:
        self.graph = graph
        self.weights: dict[str, Array] = {}
        self.planes: dict[str, Plane] = {}
        self.used: set[str] = set()
        """Outputs of the nodes that steps cover."""
        self.image_plane = plane

    def run(self) -> Network:
        strange = next((node for node in self.graph.nodes if node.op_type not in KNOWN), None)
        if strange is not None:
            raise refused(strange, "no fused kernel computes it")
        steps = [
            self._widen(end) if end.op_type in MOVEMENT_OPS else self._weighted(end) for end in self._ends()
        ]
        left = next(unused(self.graph, self.used), None)
        if left is not None:
            raise refused(left, "no fused kernel computes it here")
        return Network(tuple(steps), self.weights)

    def _ends(self) -> list[onnx.NodeProto]:
        """The last node of every step, in the order of execution: a step runs where all that it reads is there."""
        self.groups: dict[str, Group] = {}
        ends, image = [], {node.name for node in self.graph.image_path()}
        for node in self.graph.nodes:
            if node.op_type == "Conv":
                group = group_of(self.graph, node)
                self.groups[group.output] = group
                ends.append(group.nodes[-1])
            elif node.name in image:
                continue
            elif node.op_type == "Gemm" or ends_movement(self.graph, node):
                ends.append(node)
        return sorted(ends, key=self.graph.position)

    def _weighted(self, end: onnx.NodeProto) -> Step:
        if end.op_type == "Gemm":
            return self._head(end)
        group = self.groups[str(end.output[0])]
        self._use(*group.nodes)
        try:
            if self.graph.behind(group.conv.input[0]).name in self.planes:
                return self._convolution(group)
            return self._stem(group)
        except ValueError as error:
            # what the kernels refuse: their sentence names shapes, ours the node
            raise refused(group.conv, str(error)) from error

    def _stem(self, group: Group) -> Step:
        first, scale = self.graph.behind(group.conv.input[0])
        image = read_image(self.graph, first)
        self._use(*image.nodes)
        self.weights |= image.weights
        window, weight, bias = operands_of(self.graph, group.conv)
        relu = group.has("Relu")
        if group.residual is not None or not (relu or weight.scales is not None):
            raise refused(
                group.conv, "the first convolution is followed by a ReLU alone, or by INT8's quantizer"
            )
        if weight.values.shape[1] > PIXEL:
            raise refused(group.conv, f"an image has at most {PIXEL} channels")
        pool = group.has("MaxPool")
        p, q = conv_of(window).output_size(*(side + 2 * image.margin for side in self.image_plane))
        if pool:
            require_pool(group.nodes[-1])
            p, q = Conv(3, 3, 2, 1).output_size(p, q)
        self._store(group, weight, bias, scale, None)
        packed = pack_weight(torch.tensor(weight.values), conv_of(window))
        self.weights[f"{group.conv.name}.weight"] = packed.numpy()
        self.planes[group.output] = p, q
        return Stem(
            name=group.conv.name,
            output=group.output,
            window=window,
            pool=pool,
            normalized=image.normalized,
            image_scale=scale,
            rest=image.rest,
            relu=relu,
            margin=image.margin,
            undone=image.undone,
        )

    def _convolution(self, group: Group) -> Step:
        name, scale = self.graph.behind(group.conv.input[0])
        window, weight, bias = operands_of(self.graph, group.conv)
        if group.has("MaxPool"):
            raise refused(group.nodes[-1], "a max pool runs in the stem alone")
        relu, residual, residual_scale = group.has("Relu"), None, None
        if group.residual is not None:
            if not (relu or weight.scales is not None):
                raise refused(group.nodes[-1], "a residual add is followed by a ReLU, or by INT8's quantizer")
            residual, residual_scale = self.graph.behind(group.residual)
            self._plane(residual, group.conv)
        self.planes[group.output] = conv_of(window).output_size(*self.planes[name])
        ratio = self._store(group, weight, bias, scale, residual_scale)
        stored = np.ascontiguousarray(weight.values.transpose(0, 2, 3, 1))
        self.weights[f"{group.conv.name}.weight"] = stored
        moved = window.padding > 0 and self.graph.offset_of(name) > 0
        if moved:
            sums = zero_sums(torch.tensor(weight.values), ZERO_POINT)
            self.weights[f"{group.conv.name}.zero_sums"] = sums.numpy()
        return Convolution(group.conv.name, name, group.output, window, relu, residual, ratio, moved)

    def _store(
        self,
        group: Group,
        weight: Weight,
        bias: Array,
        scale: float | None,
        residual_scale: float | None,
    ) -> float | None:
        """Store bias and scale of a convolution; returns the factor of its residual in INT8."""
        out = self.graph.scale_of(group.output)
        has_residual = group.residual is not None
        expected = weight.scales is not None
        found = {scale is not None, out is not None} | (
            {residual_scale is not None} if has_residual else set()
        )
        if found != {expected}:
            raise refused(
                group.conv,
                f"its input, weight, residual and output are quantized, or none of them; {MIXED}",
            )
        name, real = group.conv.name, torch.from_numpy(bias.astype(np.float32))
        if scale is None or out is None or weight.scales is None:
            self.weights[f"{name}.bias"] = real.numpy()
            return None
        made = requantization(scale, torch.tensor(weight.scales), out, real, residual_scale)
        self.weights[f"{name}.scale"], self.weights[f"{name}.bias"] = made.scale.numpy(), made.bias.numpy()
        return made.residual_scale

    def _widen(self, end: onnx.NodeProto) -> Step:
        found = read_movement(self.graph, end, lambda tensor: self._plane(tensor, end))
        self._use(*found.nodes)
        h, w = self._plane(found.source, end)
        output, stride = str(end.output[0]), found.stride
        self.planes[output] = -(-h // stride), -(-w // stride)
        return Widen(end.name, found.source, output, stride, found.before, found.after, found.zero_point)

    def _head(self, gemm: onnx.NodeProto) -> Step:
        pooled, pool_scale = self.graph.behind(gemm.input[0])
        flatten = self.graph.maker(pooled)
        pool = None if flatten is None else self.graph.maker(flatten.input[0])
        if flatten is None or pool is None or pool.op_type != "GlobalAveragePool":
            raise refused(gemm, "the classifier reads a global average pool")
        cast_node = self.graph.only_user(gemm.output[0])
        self._use(pool, flatten, gemm, *([cast_node] if cast_node is not None else []))
        source, scale = self.graph.behind(pool.input[0])
        weight, bias = self.graph.weight(gemm.input[1]), self.graph.constant(gemm.input[2])
        attrs = attributes(gemm)
        plain = attrs.get("transB", 0) == 1 and attrs.get("alpha", 1.0) == attrs.get("beta", 1.0) == 1.0
        if weight is None or bias is None or not plain:
            raise refused(gemm, "the classifier has constant weights [classes, channels] and a bias")
        if {scale is not None, pool_scale is not None} != {weight.scales is not None}:
            raise refused(
                gemm, f"the pool's input, its output and the weight are quantized, or none of them; {MIXED}"
            )
        name = gemm.name
        self.weights[f"{name}.weight"] = np.ascontiguousarray(weight.values)
        self.weights[f"{name}.bias"] = bias.astype(np.float32)
        if scale is None or pool_scale is None or weight.scales is None:
            return Head(name, source, None)
        h, w = self._plane(source, gemm)
        factor, scales = head_scales(scale, h * w, pool_scale, torch.tensor(weight.scales))
        self.weights[f"{name}.scale"] = scales.numpy()
        return Head(name, source, factor)

    def _plane(self, tensor: str, reader: onnx.NodeProto) -> Plane:
        """[H, W] of a tensor that an earlier step has made."""
        if tensor not in self.planes:
            raise refused(reader, f"no step makes '{tensor}', which it reads")
        return self.planes[tensor]

    def _use(self, *nodes: Any) -> None:
        self.used |= {str(node.output[0]) for node in nodes}
