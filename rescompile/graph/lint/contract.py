"""The fusion contract, checked before any engine is built: one small function per rule.

Each rule looks at the deployable graph alone and knows nothing of how it was made, so a graph from another tool
can be linted too. A rule yields sentences that name the block and the fix. Background and sources of the rules:
``docs/fusion-contract.md``.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.lint import blocks, quantizers, ranges
from rescompile.graph.lint.subject import Rule, Subject, Violation, made_by
from rescompile.graph.offsets import offsets_of
from rescompile.graph.surgeon import read
from rescompile.graph.topology import consumers, is_quantized
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
    "skip-shares-scale": blocks.skip_shares_scale,
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
    """Every broken rule of ``model``, the deployable graph; empty when it keeps the contract.

    ``fp16_blocks`` are those that an int8 graph leaves in floating point on purpose.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    subject = Subject(
        read(model),
        precision,
        rest_type,
        residual_adds,
        opset,
        frozenset(fp16_blocks),
        offsets_of(model),
    )
    return tuple(Violation(name, text) for name, rule in RULES.items() for text in rule(subject))


def fusable_adds(model: onnx.ModelProto) -> int:
    """Residual adds that can be one int8 convolution with bias, add, ReLU and requantization.

    Such an add takes one unquantized convolution output and one dequantized skip, is followed by a ReLU alone,
    and that ReLU by a quantizer alone. In a tensor of full range the quantizer is the ReLU.
    """
    full_range = offsets_of(model)
    adds = [node for node in read(model).nodes if node.op == "Add" and node.name.endswith(".add")]
    return sum(_is_fusable(node, saturates=node.outputs[0].name in full_range) for node in adds)


def _is_fusable(add: gs.Node, *, saturates: bool) -> bool:
    kinds = sorted(made_by(tensor) for tensor in add.inputs)
    if not all(is_quantized(tensor.inputs[0]) for tensor in add.inputs if made_by(tensor) == "Conv"):
        return False
    if kinds != ["Conv", "DequantizeLinear"]:
        return False
    relu = list(consumers(add.outputs[0]))
    if saturates:
        return [node.op for node in relu] == ["QuantizeLinear"]
    if [node.op for node in relu] != ["Relu"]:
        return False
    return [node.op for node in consumers(relu[0].outputs[0])] == ["QuantizeLinear"]
