"""The fusion contract, checked before any engine is built: one small function per rule.

Each rule looks at the deployable graph alone and knows nothing of how it was made, so a graph from another tool
can be linted too. A rule yields sentences that name the block and the fix. Background and sources of the rules:
``docs/fusion-contract.md``.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph import lint_blocks, lint_quantizers, lint_ranges
from rescompile.graph.lint_subject import Rule, Subject, Violation, made_by
from rescompile.graph.offsets import offsets_of
from rescompile.graph.surgeon import read
from rescompile.graph.topology import consumers, is_quantized
from rescompile.manifest import Precision

RULES: dict[str, Rule] = {
    "batch-norm-folded": lint_blocks.batch_norm_folded,
    "no-quantizer-in-float": lint_quantizers.no_quantizer_in_float,
    "int8-only": lint_quantizers.int8_only,
    "zero-point-zero": lint_quantizers.zero_point_zero,
    "scale-constant-positive": lint_quantizers.scale_constant_positive,
    "scale-type": lint_quantizers.scale_type,
    "opset": lint_quantizers.opset,
    "activation-per-tensor": lint_quantizers.activation_per_tensor,
    "weight-per-channel": lint_quantizers.weight_per_channel,
    "weight-constant": lint_quantizers.weight_constant,
    "bias-float": lint_quantizers.bias_float,
    "inputs-quantized": lint_blocks.inputs_quantized,
    "fp16-blocks": lint_blocks.fp16_blocks,
    "pairs": lint_quantizers.pairs,
    "outputs-unquantized": lint_blocks.outputs_unquantized,
    "full-range": lint_ranges.full_range,
    "exact-pixels": lint_ranges.exact_pixels,
    "residual-skip-only": lint_blocks.residual_skip_only,
    "skip-shares-scale": lint_blocks.skip_shares_scale,
    "max-pool-passes": lint_blocks.max_pool_passes,
    "global-pool": lint_blocks.global_pool,
    "channels": lint_blocks.channels,
    "rest-type": lint_blocks.rest_type,
    "residual-count": lint_blocks.residual_count,
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
