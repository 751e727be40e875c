"""Rules of the fusion contract for blocks: where Q/DQ stand between convolutions, adds and pools, and in which type."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.graph.lint.subject import Findings, Subject, same_scale
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.links import (
    MOVEMENT_OPS,
    WEIGHTED_OPS,
    behind_quantizers,
    consumers,
    is_quantized,
    made_by,
    reads_image,
)
from rescompile.graph.shared.topology import ends_branch, maker_block, sources_of_scales


def batch_norm_folded(subject: Subject) -> Findings:
    """No batch norm is left behind a convolution; those in front of pre-activation blocks cannot be folded."""
    for node in subject.nodes("BatchNormalization"):
        if made_by(node.inputs[0]) in WEIGHTED_OPS and len(consumers(node.inputs[0])) == 1:
            yield (
                f"'{node.name}' is still in the graph: fold it, so that scales are taken from the deployed weights"
            )


def inputs_quantized(subject: Subject) -> Findings:
    """Convolutions and the classifier read a dequantized activation and a dequantized weight."""
    for node in filter(subject.in_int8, subject.nodes(*WEIGHTED_OPS)):
        for position, kind in enumerate(("activation", "weight")):
            if made_by(node.inputs[position]) != "DequantizeLinear":
                yield f"the {kind} of '{node.name}' is not quantized: put Q/DQ in front of it"


def fp16_blocks(subject: Subject) -> Findings:
    """Blocks kept in FP16 exist, have float weights, and read Q/DQ only where an INT8 block ends in front of them."""
    weighted = subject.nodes(*WEIGHTED_OPS)
    for block in sorted(subject.fp16_blocks - {block_of(node.name) for node in weighted}):
        yield f"there is no block '{block}' to keep in FP16: name a block that the network has"
    for node in [*weighted, *subject.adds(), *subject.nodes("GlobalAveragePool")]:
        if block_of(node.name) not in subject.fp16_blocks:
            continue
        if node.op in WEIGHTED_OPS and is_quantized(node):
            yield f"the weight of '{node.name}' is quantized in a block to keep in FP16: restore its float weight"
        for tensor in node.inputs[:1] if node.op in WEIGHTED_OPS else node.inputs:
            source = maker_block(behind_quantizers(tensor))
            border = source not in (None, block_of(node.name), *subject.fp16_blocks)
            dequantized = made_by(tensor) == "DequantizeLinear"
            if border and not dequantized and node.name not in subject.floating:
                yield f"'{node.name}' reads the end of an INT8 block without Q/DQ: put that pair back"
            shared = any(other.op in WEIGHTED_OPS and is_quantized(other) for other in consumers(tensor))
            if dequantized and not border and not shared:
                yield f"'{node.name}' reads Q/DQ although nothing in front of it is INT8: remove that pair"


def outputs_unquantized(subject: Subject) -> Findings:
    """No Q stands between conv, add and ReLU, unless an INT8 layer or the skip of an add reads it too."""
    for node in [*subject.nodes("Conv"), *subject.adds()]:
        saturates = node.outputs[0].name in subject.full_range
        for quantize in consumers(node.outputs[0]):
            if quantize.op == "QuantizeLinear" and not saturates and _splits_kernel(quantize, subject):
                yield f"the output of '{node.name}' is quantized before its ReLU or add: remove that Q/DQ"


def _splits_kernel(quantize: gs.Node, subject: Subject) -> bool:
    """Whether ``quantize`` stands before a ReLU or the branch of an add, and nothing reads it in INT8."""
    maker = quantize.inputs[0].inputs[0]
    todo = [user for dq in consumers(quantize.outputs[0]) for user in consumers(dq.outputs[0])]
    splits = False
    while todo:
        user = todo.pop()
        if user.op in WEIGHTED_OPS and is_quantized(user):
            return False
        ends = maker.op == "Conv" and maker.name.startswith(f"{user.name.removesuffix('.add')}.conv")
        if user.op == "Add" and not ends and subject.in_int8(user):
            return False
        splits = splits or user.op == "Relu" or (user.op == "Add" and ends)
        if user.op in (*MOVEMENT_OPS, "MaxPool", "Flatten", "Reshape", "Concat", "GlobalAveragePool"):
            todo += consumers(user.outputs[0])
    return splits


def residual_skip_only(subject: Subject) -> Findings:
    """A residual add has Q/DQ on its skip and nowhere else."""
    for add in filter(subject.in_int8, subject.adds()):
        quantized = [tensor for tensor in add.inputs if made_by(tensor) == "DequantizeLinear"]
        if len(quantized) != 1:
            yield f"'{add.name}' has {len(quantized)} quantized inputs: put Q/DQ on the skip and nothing on the branch"
        else:
            (branch,) = (tensor for tensor in add.inputs if tensor is not quantized[0])
            if not ends_branch(branch, add.name.removesuffix(".add")):
                yield f"'{add.name}' has its Q/DQ on the convolution branch: move it to the skip"


def one_scale(subject: Subject) -> Findings:
    """What only moves quantized values has their scale, and a tensor is quantized with one scale."""
    if subject.precision != "int8":
        return
    quantizers: dict[str, list[gs.Node]] = defaultdict(list)
    for node in subject.nodes("QuantizeLinear"):
        quantizers[node.inputs[0].name].append(node)
    for name, source in sources_of_scales(subject.graph, quantizers).items():
        first = quantizers[source][0]
        for other in quantizers[name]:
            if not same_scale(first, other):
                yield f"'{other.name}' has another scale than '{first.name}', but the same values: give both one scale"


def max_pool_passes(subject: Subject) -> Findings:
    """A max pool has no quantizer in front of it."""
    for pool in subject.nodes("MaxPool"):
        alone = len(consumers(pool.inputs[0])) == 1
        if made_by(pool.inputs[0]) == "DequantizeLinear" and alone:
            yield f"'{pool.name}' has a quantizer in front: quantize behind the pool only, that Q moves across it"


def global_pool(subject: Subject) -> Findings:
    """The global average pool is a GlobalAveragePool with Q/DQ on both sides or on none."""
    for node in subject.nodes("ReduceMean"):
        if node.name not in subject.floating:
            yield (
                f"'{node.name}' averages with ReduceMean, which is not a pooling layer: export it as "
                "GlobalAveragePool"
            )
    if subject.precision != "int8":
        return
    for pool in subject.nodes("GlobalAveragePool"):
        before = made_by(pool.inputs[0]) == "DequantizeLinear"
        after = _feeds_quantizer(pool.outputs[0])
        sides = {maker_block(behind_quantizers(pool.inputs[0])), block_of(pool.name)}
        if before != after and subject.in_int8(pool) and not sides & subject.fp16_blocks:
            yield f"'{pool.name}' has Q/DQ on one side only: an int8 pool needs DQ in front and Q behind"


def _feeds_quantizer(tensor: gs.Tensor) -> bool:
    users = consumers(tensor)
    while len(users) == 1 and users[0].op in ("Flatten", "Reshape"):
        users = consumers(users[0].outputs[0])
    return any(user.op == "QuantizeLinear" for user in users)


def channels(subject: Subject) -> Findings:
    """Convolutions other than the stem have at least 16 channels or a multiple of 8, which INT8 kernels need."""
    for node in filter(subject.in_int8, subject.nodes("Conv")):
        if node.name == "conv1":
            continue
        shape = behind_quantizers(node.inputs[1]).shape
        inputs = shape[1] * node.attrs.get("group", 1)
        for size, side in ((shape[0] if reads_image(node) else inputs, "input"), (shape[0], "output")):
            if size < 16 and size % 8:
                yield f"'{node.name}' has {size} {side} channels, too few for int8 kernels: build with --precision fp16"


def rest_type(subject: Subject) -> Findings:
    """Everything that is not quantized has one float type: no FP32 islands in an FP16 graph, nor the reverse."""
    for node in subject.nodes("Conv", "Gemm", "Add", "Relu", "MaxPool", "GlobalAveragePool", "Mul"):
        for tensor in node.inputs:
            kind = tensor.dtype if isinstance(tensor, gs.Constant) else None
            sizes = kind is not None and np.issubdtype(kind, np.integer)  # arithmetic of shapes
            if kind is not None and not sizes and np.dtype(kind).name != subject.rest_type:
                yield f"'{tensor.name}' of '{node.name}' is {np.dtype(kind).name}: make it {subject.rest_type}"


def residual_count(subject: Subject) -> Findings:
    """No residual add was lost or added."""
    found = len(subject.adds())
    if found != subject.residual_adds:
        yield f"the graph has {found} residual adds, the network has {subject.residual_adds}: a block was lost or added"
