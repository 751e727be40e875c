"""The fusion contract, checked before any engine is built: one small function per rule.

Each rule looks at the deployable graph alone and knows nothing of how it was made, so a graph from another tool
can be linted too. A rule yields sentences that name the block and the fix. Background and sources of the rules:
``docs/fusion-contract.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.graph.constant_channels import is_balanced
from rescompile.graph.offsets import offsets_of
from rescompile.graph.surgeon import read
from rescompile.graph.topology import (
    MOVEMENT_OPS,
    QUANTIZER_OPS,
    WEIGHTED_OPS,
    behind_quantizers,
    block_of,
    consumers,
    is_quantized,
    maker_block,
)
from rescompile.graph.vocabulary import PIXEL_STEP, PIXELS
from rescompile.manifest import Precision

_HALF_STEP = float(np.finfo(np.float16).eps)

Findings = Iterator[str]
Rule = Callable[["Subject"], Findings]


@dataclass(frozen=True)
class Subject:
    """A graph under inspection."""

    graph: gs.Graph
    precision: Precision
    rest_type: str
    """``float32`` or ``float16``: the type asked of everything that is not quantized."""
    residual_adds: int
    """How many the network's definition has."""
    opset: int
    fp16_blocks: frozenset[str] = frozenset()
    """Blocks that are meant to stay in floating point."""
    full_range: Mapping[str, float] = field(default_factory=dict)
    """Tensors whose ReLU is the saturation of their quantizer, to their offsets."""

    def nodes(self, *ops: str) -> list[gs.Node]:
        """Nodes of these kinds, in the order of execution."""
        return [node for node in self.graph.nodes if node.op in ops]

    def adds(self) -> list[gs.Node]:
        """The residual adds; preprocessing in the graph has an Add of its own."""
        return [node for node in self.nodes("Add") if node.name.endswith(".add")]

    def in_int8(self, node: gs.Node) -> bool:
        """Whether ``node`` belongs to a block that is meant to be quantized."""
        return self.precision == "int8" and block_of(node.name) not in self.fp16_blocks


@dataclass(frozen=True)
class Violation:
    """A broken rule: ``str(violation)`` is the sentence for the user."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"[{self.rule}] {self.message}"


RULES: dict[str, Rule] = {}
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


def _rule(name: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES[name] = rule
        return rule

    return register


def _values(tensor: gs.Tensor) -> NDArray[np.generic] | None:
    return tensor.values if isinstance(tensor, gs.Constant) else None


def _same_scale(first: gs.Node, second: gs.Node) -> bool:
    one, other = _values(first.inputs[1]), _values(second.inputs[1])
    return one is not None and other is not None and np.array_equal(one, other)


def _made_by(tensor: gs.Tensor) -> str:
    return tensor.inputs[0].op if tensor.inputs else ""


@_rule("batch-norm-folded")
def _batch_norm_folded(subject: Subject) -> Findings:
    for node in subject.nodes("BatchNormalization"):
        yield f"'{node.name}' is still in the graph: fold it, so that scales are taken from the deployed weights"


@_rule("no-quantizer-in-float")
def _no_quantizer_in_float(subject: Subject) -> Findings:
    if subject.precision != "int8":
        for node in subject.nodes(*QUANTIZER_OPS):
            yield f"'{node.name}' quantizes in an engine asked for in {subject.precision}: remove it"


@_rule("int8-only")
def _int8_only(subject: Subject) -> Findings:
    for node in subject.nodes("QuantizeLinear"):
        if (kind := _integer_type(node)) not in (None, "int8"):
            yield f"'{node.name}' makes {kind}: use int8, because TensorRT reads uint8 as int8 and clips at 127"
    for node in subject.nodes("DequantizeLinear"):
        if (kind := _integer_type(node)) not in (None, "int8"):
            yield f"'{node.name}' reads {kind}: only int8 may be dequantized (a bias stays floating point)"


def _integer_type(node: gs.Node) -> str | None:
    """The zero point decides the type; without one a DQ has its input's, and a Q is for rule zero-point-zero."""
    for tensor in (*node.inputs[2:3], node.inputs[0]):
        values = _values(tensor)
        if values is not None:
            return values.dtype.name
    return None


@_rule("zero-point-zero")
def _zero_point_zero(subject: Subject) -> Findings:
    for node in subject.nodes(*QUANTIZER_OPS):
        if len(node.inputs) < 3:
            if node.op == "QuantizeLinear":
                yield f"'{node.name}' has no zero point, which means uint8: give it a constant int8 zero"
            continue
        values = _values(node.inputs[2])
        if values is None:
            yield f"the zero point of '{node.name}' is computed: make it a constant int8 zero"
        elif np.any(values):
            yield f"'{node.name}' has zero point {int(values.flat[0])}: quantize symmetrically, with zero point 0"


@_rule("scale-constant-positive")
def _scale_constant_positive(subject: Subject) -> Findings:
    for node in subject.nodes(*QUANTIZER_OPS):
        values = _values(node.inputs[1])
        if values is None:
            yield f"the scale of '{node.name}' is computed: make it a constant"
            continue
        wrong = ~(np.isfinite(values) & (values.astype(np.float64) > 0))
        if np.any(wrong):
            channel = f" in channel {int(np.argmax(wrong))}" if values.ndim else ""
            yield f"'{node.name}' has a scale that is not positive{channel}: give dead channels the smallest scale"


@_rule("scale-type")
def _scale_type(subject: Subject) -> Findings:
    for node in subject.nodes("QuantizeLinear"):
        values, kind = _values(node.inputs[1]), node.inputs[0].dtype
        if values is not None and kind is not None and values.dtype != kind:
            yield f"'{node.name}' reads {np.dtype(kind).name} with a {values.dtype.name} scale: give both one type"


@_rule("opset")
def _opset(subject: Subject) -> Findings:
    needed = 19 if subject.rest_type == "float16" else 13
    if subject.precision == "int8" and subject.opset < needed:
        yield f"the graph has opset {subject.opset}: int8 with {subject.rest_type} scales needs {needed}"


@_rule("activation-per-tensor")
def _activation_per_tensor(subject: Subject) -> Findings:
    for node in subject.nodes("QuantizeLinear"):
        values = _values(node.inputs[1])
        if values is not None and values.size != 1:
            yield f"'{node.name}' has {values.size} scales: activations take one per tensor, or the int8 path is lost"


@_rule("weight-per-channel")
def _weight_per_channel(subject: Subject) -> Findings:
    for node in subject.nodes(*WEIGHTED_OPS):
        source = node.inputs[1].inputs[0] if node.inputs[1].inputs else None
        if source is None or source.op != "DequantizeLinear":
            continue  # rule inputs-quantized speaks of it
        scale = _values(source.inputs[1])
        channels = source.inputs[0].shape[0]
        if scale is not None and (scale.size != channels or source.attrs.get("axis", 1) != 0):
            yield (
                f"the weight of '{node.name}' has {scale.size} scales on axis {source.attrs.get('axis', 1)}: "
                + (f"use one for each of the {channels} output channels, on axis 0")
            )


@_rule("weight-constant")
def _weight_constant(subject: Subject) -> Findings:
    for node in subject.nodes(*WEIGHTED_OPS):
        if _values(behind_quantizers(node.inputs[1])) is None:
            yield f"the weight of '{node.name}' is computed in the graph: store it as a constant"


@_rule("bias-float")
def _bias_float(subject: Subject) -> Findings:
    for node in subject.nodes(*WEIGHTED_OPS):
        if len(node.inputs) > 2 and not isinstance(node.inputs[2], gs.Constant):
            yield f"the bias of '{node.name}' comes from {_made_by(node.inputs[2])}: keep it a floating-point constant"


@_rule("inputs-quantized")
def _inputs_quantized(subject: Subject) -> Findings:
    for node in filter(subject.in_int8, subject.nodes(*WEIGHTED_OPS)):
        for position, kind in enumerate(("activation", "weight")):
            if _made_by(node.inputs[position]) != "DequantizeLinear":
                yield f"the {kind} of '{node.name}' is not quantized: put Q/DQ in front of it"


@_rule("fp16-blocks")
def _fp16_blocks(subject: Subject) -> Findings:
    """Blocks that are meant to stay in floating point exist, and read Q/DQ where an INT8 block ends, only there."""
    weighted = subject.nodes(*WEIGHTED_OPS)
    for block in sorted(subject.fp16_blocks - {block_of(node.name) for node in weighted}):
        yield f"there is no block '{block}' to keep in FP16: name one of the network's"
    for node in [*weighted, *subject.adds(), *subject.nodes("GlobalAveragePool")]:
        if block_of(node.name) not in subject.fp16_blocks:
            continue
        if node.op in WEIGHTED_OPS and is_quantized(node):
            yield f"the weight of '{node.name}' is quantized in a block to keep in FP16: restore its float weight"
        for tensor in node.inputs[:1] if node.op in WEIGHTED_OPS else node.inputs:
            source = maker_block(behind_quantizers(tensor))
            border = source not in (None, block_of(node.name), *subject.fp16_blocks)
            if border and _made_by(tensor) != "DequantizeLinear":
                yield f"'{node.name}' reads the end of an INT8 block without Q/DQ: put that pair back"
            if not border and _made_by(tensor) == "DequantizeLinear":
                yield f"'{node.name}' reads Q/DQ although nothing in front of it is INT8: remove that pair"


@_rule("pairs")
def _pairs(subject: Subject) -> Findings:
    for node in subject.nodes("QuantizeLinear"):
        for user in consumers(node.outputs[0]):
            if user.op != "DequantizeLinear" or not _same_scale(user, node):
                yield f"'{node.name}' is read by '{user.name}' ({user.op}): let a DQ with the same scale follow each Q"


@_rule("outputs-unquantized")
def _outputs_unquantized(subject: Subject) -> Findings:
    """No Q between conv and ReLU, conv and add, add and ReLU; a downsample's output is a skip and may have one."""
    for node in [*subject.nodes("Conv"), *subject.adds()]:
        followers = [user.op for user in consumers(node.outputs[0])]
        saturates = node.outputs[0].name in subject.full_range
        if "QuantizeLinear" in followers and not saturates and not _feeds_add_as_skip(node):
            yield f"the output of '{node.name}' is quantized before its ReLU or add: remove that Q/DQ"


def _feeds_add_as_skip(node: gs.Node) -> bool:
    ends = [
        user
        for q in consumers(node.outputs[0])
        for dq in consumers(q.outputs[0])
        for user in consumers(dq.outputs[0])
    ]
    return node.op == "Conv" and bool(ends) and all(user.op == "Add" for user in ends)


@_rule("full-range")
def _full_range(subject: Subject) -> Findings:
    """Zero is stored as -128 in these tensors, so each has a quantizer, and padding with zeros must not count."""
    quantizers = {node.inputs[0].name: node for node in subject.nodes("QuantizeLinear")}
    for name in sorted(subject.full_range):
        if name not in quantizers:
            yield f"'{name}' has an offset, but no quantizer that saturates: put its Q/DQ back"
            continue
        for dequantize in consumers(quantizers[name].outputs[0]):
            for reader in _behind_movements(dequantize.outputs[0]):
                if reader.op == "Conv":
                    if any(reader.attrs.get("pads", ())) and not is_balanced(reader):
                        yield (
                            f"'{reader.name}' pads '{name}', whose zero is not 0, and the weights of a tap do not sum "
                            "to zero: give it constant channels, or quantize it symmetrically"
                        )
                elif reader.op == "Pad":
                    zero = -subject.full_range[name]
                    if not np.isclose(_pad_value(reader), zero, rtol=_HALF_STEP):
                        yield f"'{reader.name}' pads '{name}' with another value than its zero: pad with {zero:g}"
                elif reader.op not in ("Add", "Slice", "QuantizeLinear"):
                    yield (
                        f"'{reader.name}' ({reader.op}) reads '{name}', whose zero is not 0: only sums and "
                        "convolutions can; quantize it symmetrically"
                    )


def _behind_movements(tensor: gs.Tensor) -> Iterator[gs.Node]:
    """Who reads ``tensor``, or what a shortcut's movements make of it."""
    for node in consumers(tensor):
        yield node
        if node.op in MOVEMENT_OPS:
            yield from _behind_movements(node.outputs[0])


def _pad_value(pad: gs.Node) -> float:
    values = _values(pad.inputs[2]) if len(pad.inputs) > 2 else None
    return 0.0 if values is None else float(values)


@_rule("exact-pixels")
def _exact_pixels(subject: Subject) -> Findings:
    """Where the first convolution reads pixels, its quantizer holds them without rounding, and no pixel is padding."""
    for quantize in subject.nodes("QuantizeLinear"):
        if quantize.inputs[0].name != PIXELS:
            continue
        scale = _values(quantize.inputs[1])
        if scale is not None and not (scale == PIXEL_STEP).all():
            yield f"'{PIXELS}' holds multiples of {PIXEL_STEP}, but '{quantize.name}' has another scale: use that"
        for dequantize in consumers(quantize.outputs[0]):
            for reader in consumers(dequantize.outputs[0]):
                if any(reader.attrs.get("pads", ())):
                    yield (
                        f"'{reader.name}' pads '{PIXELS}' with zeros, which are pixels of 128: pad the normalized "
                        "image in front of it"
                    )


@_rule("residual-skip-only")
def _residual_skip_only(subject: Subject) -> Findings:
    for add in filter(subject.in_int8, subject.adds()):
        quantized = [tensor for tensor in add.inputs if _made_by(tensor) == "DequantizeLinear"]
        if len(quantized) != 1:
            yield f"'{add.name}' has {len(quantized)} quantized inputs: put Q/DQ on the skip and nothing on the branch"
        else:
            (branch,) = (tensor for tensor in add.inputs if tensor is not quantized[0])
            if _convolutions_above(quantized[0]) >= _convolutions_above(branch):
                yield f"'{add.name}' has its Q/DQ on the convolution branch: move it to the skip"


def _convolutions_above(tensor: gs.Tensor) -> int:
    """Convolutions between ``tensor`` and the previous residual add or the graph's input."""
    count = 0
    while tensor.inputs and tensor.inputs[0].op != "Add":
        count += tensor.inputs[0].op == "Conv"
        tensor = tensor.inputs[0].inputs[0]
    return count


@_rule("skip-shares-scale")
def _skip_shares_scale(subject: Subject) -> Findings:
    """An identity skip reads the very Q/DQ that feeds conv1; behind a slice and pad, an equal scale."""
    if subject.precision != "int8":
        return
    for add in subject.adds():
        for tensor in add.inputs:
            if _made_by(tensor) != "DequantizeLinear":
                continue
            dequantize = tensor.inputs[0]
            source = behind_quantizers(tensor)
            while source.inputs and source.inputs[0].op in MOVEMENT_OPS:
                source = source.inputs[0].inputs[0]
            source = behind_quantizers(source)
            for q in consumers(source):
                if q.op == "QuantizeLinear" and not _same_scale(q, dequantize):
                    yield f"the skip of '{add.name}' has another scale than '{q.name}': share one quantizer"


@_rule("max-pool-passes")
def _max_pool_passes(subject: Subject) -> Findings:
    for pool in subject.nodes("MaxPool"):
        if _made_by(pool.inputs[0]) == "DequantizeLinear":
            yield f"'{pool.name}' has a quantizer in front: leave the one behind it alone, it moves across the pool"


@_rule("global-pool")
def _global_pool(subject: Subject) -> Findings:
    for node in subject.nodes("ReduceMean"):
        yield f"'{node.name}' averages with ReduceMean, which is no pooling layer: export it as GlobalAveragePool"
    if subject.precision != "int8":
        return
    for pool in subject.nodes("GlobalAveragePool"):
        before = _made_by(pool.inputs[0]) == "DequantizeLinear"
        after = _next_quantizer(pool.outputs[0])
        sides = {maker_block(behind_quantizers(pool.inputs[0])), block_of(pool.name)}
        if before != after and not sides & subject.fp16_blocks:
            yield f"'{pool.name}' has Q/DQ on one side only: an int8 pool needs DQ in front and Q behind"


def _next_quantizer(tensor: gs.Tensor) -> bool:
    users = list(consumers(tensor))
    while len(users) == 1 and users[0].op in ("Flatten", "Reshape"):
        users = list(consumers(users[0].outputs[0]))
    return any(user.op == "QuantizeLinear" for user in users)


@_rule("channels")
def _channels(subject: Subject) -> Findings:
    """Convolutions other than the stem need at least 16 channels, or a multiple of 8, for an int8 kernel."""
    for node in filter(subject.in_int8, subject.nodes("Conv")):
        if node.name == "conv1":
            continue
        shape = behind_quantizers(node.inputs[1]).shape
        for size, side in ((shape[1], "input"), (shape[0], "output")):
            if size < 16 and size % 8:
                yield f"'{node.name}' has {size} {side} channels, too few for int8 kernels: build with --precision fp16"


@_rule("rest-type")
def _rest_type(subject: Subject) -> Findings:
    """No FP32 islands in an FP16 graph, and the other way round."""
    for node in subject.nodes("Conv", "Gemm", "Add", "Relu", "MaxPool", "GlobalAveragePool", "Mul"):
        for tensor in node.inputs:
            kind = tensor.dtype if isinstance(tensor, gs.Constant) else None
            if kind is not None and np.dtype(kind).name != subject.rest_type:
                yield f"'{tensor.name}' of '{node.name}' is {np.dtype(kind).name}: type it {subject.rest_type}"


@_rule("residual-count")
def _residual_count(subject: Subject) -> Findings:
    found = len(subject.adds())
    if found != subject.residual_adds:
        yield f"the graph has {found} residual adds, the network has {subject.residual_adds}: a block was lost or added"


def fusable_adds(model: onnx.ModelProto) -> int:
    """Residual adds that can be one int8 convolution with bias, add, ReLU and requantization.

    Such an add takes one unquantized convolution output and one dequantized skip, is followed by a ReLU alone,
    and that ReLU by a quantizer alone. In a tensor of full range the quantizer is the ReLU.
    """
    full_range = offsets_of(model)
    adds = [node for node in read(model).nodes if node.op == "Add" and node.name.endswith(".add")]
    return sum(_is_fusable(node, saturates=node.outputs[0].name in full_range) for node in adds)


def _is_fusable(add: gs.Node, *, saturates: bool) -> bool:
    kinds = sorted(_made_by(tensor) for tensor in add.inputs)
    if not all(is_quantized(tensor.inputs[0]) for tensor in add.inputs if _made_by(tensor) == "Conv"):
        return False
    if kinds != ["Conv", "DequantizeLinear"]:
        return False
    relu = list(consumers(add.outputs[0]))
    if saturates:
        return [node.op for node in relu] == ["QuantizeLinear"]
    if [node.op for node in relu] != ["Relu"]:
        return False
    return [node.op for node in consumers(relu[0].outputs[0])] == ["QuantizeLinear"]
