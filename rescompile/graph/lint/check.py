"""The table of all rules, and the functions that check a graph against them."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.lint.rules import blocks, quantizers, ranges
from rescompile.graph.lint.subject import Rule, Subject, Violation
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import consumers, is_quantized, made_by
from rescompile.graph.shared.metadata import float_reasons, offsets_of
from rescompile.manifest import Precision

RULES: dict[str, Rule] = {
    "batch-norm-folded": blocks.batch_norm_folded,
    "no-quantizer-in-float": quantizers.no_quantizer_in_float,
    "int8-only": quantizers.int8_only,
    "zero-point-zero": quantizers.zero_point_zero,
    "scale-constant-positive": quantizers.scale_constant_positive,
    "scale-type": quantizers.scale_type,
    "opset": quantizers.opset,
    "activation-per-tensor": quantizers.activation_per_tensor,
    "weight-per-channel": quantizers.weight_per_channel,
    "weight-constant": quantizers.weight_constant,
    "bias-float": quantizers.bias_float,
    "inputs-quantized": blocks.inputs_quantized,
    "fp16-blocks": blocks.fp16_blocks,
    "pairs": quantizers.pairs,
    "outputs-unquantized": blocks.outputs_unquantized,
    "full-range": ranges.full_range,
    "exact-pixels": ranges.exact_pixels,
    "residual-skip-only": blocks.residual_skip_only,
    "one-scale": blocks.one_scale,
    "max-pool-passes": blocks.max_pool_passes,
    "global-pool": blocks.global_pool,
    "channels": blocks.channels,
    "rest-type": blocks.rest_type,
    "residual-count": blocks.residual_count,
}
"""All rules by name, in the order in which they are checked."""


def lint(
    model: onnx.ModelProto,
    *,
    precision: Precision,
    rest_type: str,
    residual_adds: int,
    fp16_blocks: Collection[str] = (),
) -> tuple[Violation, ...]:
    """Every violation in ``model``, the deployable graph; empty where it keeps the contract.

    ``fp16_blocks`` are the blocks that an INT8 graph keeps in floating point on purpose.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    subject = Subject(
        read(model), precision, rest_type, residual_adds, opset, frozenset(fp16_blocks), offsets_of(model),
        float_reasons(model),
    )  # fmt: skip
    return tuple(Violation(name, text) for name, rule in RULES.items() for text in rule(subject))


def fusable_adds(model: onnx.ModelProto) -> int:
    """Number of residual adds that can be one INT8 convolution with bias, add, ReLU and requantization.

    Such an add has one unquantized convolution output and one dequantized skip as inputs. Its only reader is a ReLU,
    whose only reader is a quantizer; in a tensor of full range the quantizer takes the place of the ReLU.
    """
    full_range = offsets_of(model)
    graph = read(model)
    adds = [node for node in graph.nodes if node.op == "Add" and node.name.endswith(".add")]
    relus = {node.name for node in graph.nodes if node.op == "Relu"}
    return sum(
        # a pre-activation block has no ReLU behind its addition, and full range none either
        _is_fusable(
            node,
            relu=node.name.replace(".add", ".relu") in relus and node.outputs[0].name not in full_range,
        )
        for node in adds
    )


def _is_fusable(add: gs.Node, *, relu: bool) -> bool:
    if sorted(map(made_by, add.inputs)) != ["Conv", "DequantizeLinear"]:
        return False
    if not all(is_quantized(tensor.inputs[0]) for tensor in add.inputs if made_by(tensor) == "Conv"):
        return False
    behind = add.outputs[0]
    if relu:
        readers = consumers(behind)
        if [node.op for node in readers] != ["Relu"]:
            return False
        behind = readers[0].outputs[0]
    return [node.op for node in consumers(behind)] == ["QuantizeLinear"]
