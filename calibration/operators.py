"""Properties of each ONNX operator: the one table that all rewrites and methods read.

An operator that is not listed is executed by ONNX Runtime alone, and nothing is assumed about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Channels = Literal["made", "kept", "tied", "scaled", "normalized", "moved", "mixed"]
"""The effect of an operator on the channels (axis 1) of its input:

made         weights make new ones out of all of them, or of those of one group
kept         each output channel is made of the same input channel alone
tied         as kept, of the same channel of every input
scaled       the product of the inputs, or their quotient
normalized   as kept, with a factor and an offset for each channel
moved        values keep their magnitudes and take other places
mixed        anything else
"""


@dataclass(frozen=True)
class Operator:
    """Properties of one operator, for any of its attributes."""

    channels: Channels = "mixed"
    homogeneous: bool = False
    """f(a x) = a f(x) for every a > 0, for each channel by itself where channels are kept."""
    moves: bool = False
    """Every output value is one of the input's values, or a constant: it commutes with Q and DQ of one scale."""
    never_negative: bool = False
    """No output value is below 0, whatever the input."""
    keeps_sign: bool = False
    """No output value is below 0 if no input value is."""
    bounded: bool = False
    """All outputs lie within bounds that do not depend on the input; a Clip's may lie there on one side alone."""
    elementwise: bool = False
    """Each output value depends on the values at its own place alone."""
    decides: bool = False
    """At the end of a network it turns logits into a decision or a probability, and so hides small errors."""
    executable: bool = True
    """Whether ``calibration.network`` executes it."""


UNKNOWN = Operator(executable=False)

_MIXED = Operator()
_WEIGHTED = Operator("made")
_LINEAR = Operator("kept", homogeneous=True, keeps_sign=True)
_MOVING = Operator("moved", homogeneous=True, moves=True, keeps_sign=True)
_SAME = Operator("kept", homogeneous=True, moves=True, keeps_sign=True, elementwise=True)
_SUM = Operator("tied", homogeneous=True, keeps_sign=True, elementwise=True)
_BENT = Operator("kept", homogeneous=True, keeps_sign=True, elementwise=True)
_RECTIFIED = replace(_BENT, never_negative=True)
_PRODUCT = Operator("scaled", keeps_sign=True, elementwise=True)
_ROUNDED = Operator("kept", keeps_sign=True, elementwise=True)
_CURVE = Operator("kept", elementwise=True)
_POSITIVE = Operator("kept", elementwise=True, never_negative=True, keeps_sign=True)
_CURVE_UP = Operator("kept", elementwise=True, keeps_sign=True)
_GATE = replace(_POSITIVE, bounded=True, decides=True)

OPERATORS: dict[str, Operator] = {
    # weights
    "Conv": _WEIGHTED, "Gemm": _WEIGHTED, "ConvTranspose": _MIXED, "MatMul": _MIXED,
    # normalization
    "BatchNormalization": Operator("normalized"), "InstanceNormalization": _MIXED, "GroupNormalization": _MIXED,
    "LayerNormalization": _MIXED, "LRN": Operator(keeps_sign=True),
    # pooling and resizing
    "MaxPool": replace(_LINEAR, moves=True), "GlobalMaxPool": replace(_LINEAR, moves=True),
    "AveragePool": _LINEAR, "GlobalAveragePool": _LINEAR,
    "Resize": _LINEAR, "ReduceMean": _LINEAR, "ReduceSum": _LINEAR,
    "ReduceMax": replace(_LINEAR, moves=True), "ReduceMin": replace(_LINEAR, moves=True),
    # moving values
    "Slice": _MOVING, "Pad": _MOVING, "Split": _MOVING, "Concat": _MOVING, "Reshape": _MOVING, "Flatten": _MOVING,
    "Transpose": _MOVING, "Squeeze": _MOVING, "Unsqueeze": _MOVING, "Expand": _MOVING, "Tile": _MOVING,
    "Gather": _MOVING, "DepthToSpace": _MOVING, "SpaceToDepth": _MOVING,
    # nothing at inference
    "Identity": _SAME, "Dropout": _SAME, "Cast": replace(_SAME, moves=False),
    # sums and products
    "Add": _SUM, "Sum": _SUM, "Mean": _SUM, "Max": _SUM, "Min": _SUM, "Sub": replace(_SUM, keeps_sign=False),
    "Mul": _PRODUCT, "Div": _PRODUCT,
    # activations
    "Relu": _RECTIFIED, "Abs": _RECTIFIED, "LeakyRelu": _BENT, "PRelu": _BENT, "Neg": replace(_BENT, keeps_sign=False),
    "Clip": replace(_CURVE, bounded=True), "Sigmoid": _GATE, "HardSigmoid": _GATE,
    "Softplus": _POSITIVE, "Exp": _POSITIVE, "Sqrt": _POSITIVE, "Reciprocal": _CURVE_UP, "Pow": _CURVE_UP,
    "HardSwish": _CURVE_UP, "Swish": replace(_CURVE_UP, executable=False), "Gelu": _CURVE_UP, "Erf": _CURVE_UP,
    "Elu": _CURVE_UP, "Selu": _CURVE_UP, "Celu": _CURVE_UP, "Mish": _CURVE_UP, "Tanh": replace(_CURVE_UP, bounded=True),
    "Softsign": _CURVE_UP, "ThresholdedRelu": _CURVE_UP, "Log": _CURVE, "Floor": _CURVE_UP, "Ceil": _CURVE_UP,
    "Softmax": Operator(never_negative=True, keeps_sign=True, bounded=True, decides=True),
    "LogSoftmax": Operator(decides=True),
    "ArgMax": Operator(never_negative=True, keeps_sign=True, decides=True),
    # shapes
    "Constant": _MIXED, "ConstantOfShape": _MIXED, "Shape": _MIXED,
    # 8-bit numbers
    "QuantizeLinear": _ROUNDED, "DequantizeLinear": _ROUNDED,
}  # fmt: skip

WEIGHTED_OPS = tuple(name for name, entry in OPERATORS.items() if entry.channels == "made")
"""Operators that are computed in INT8: a constant weight times their input."""


def operator(name: str) -> Operator:
    """The properties of the operator ``name``, as ONNX spells it."""
    return OPERATORS.get(name, UNKNOWN)
