"""The fused operations on tensors: each validates, chooses a tile and launches, or calls its reference.

All raise ``ShapeError`` for tensors that do not fit one another, and ``Unsupported`` for dtypes and forms without a
kernel. The chain kernel's operation is ``fused_kernels.ops.chain.chain``, with its operands' type beside it.
"""

from fused_kernels.operands.image import Take
from fused_kernels.operands.partials import Partials
from fused_kernels.ops.convolution import (
    conv_moments,
    conv_plain,
    dgrad_block,
    dgrad_drelu,
    dgrad_shortcut,
    wgrad,
    wgrad_and_dy,
)
from fused_kernels.ops.head import pool_fc, pool_fc_int8
from fused_kernels.ops.image import take
from fused_kernels.ops.inference import conv_bias, conv_int8, fold, requantization
from fused_kernels.ops.passes import activate, bn_backward, entry, join
from fused_kernels.ops.shortcut import widen
from fused_kernels.ops.statistics import finalize, frozen, merge, norm_gradients, sums
from fused_kernels.ops.stem import (
    stem_activate_backward,
    stem_activate_sums,
    stem_conv,
    stem_conv_moments,
    stem_inference,
    stem_pool,
    stem_pool_backward,
    stem_pool_sums,
    stem_wgrad,
)

__all__ = [
    "Partials",
    "Take",
    "activate",
    "bn_backward",
    "conv_bias",
    "conv_int8",
    "conv_moments",
    "conv_plain",
    "dgrad_block",
    "dgrad_drelu",
    "dgrad_shortcut",
    "entry",
    "finalize",
    "fold",
    "frozen",
    "join",
    "merge",
    "norm_gradients",
    "pool_fc",
    "pool_fc_int8",
    "requantization",
    "stem_activate_backward",
    "stem_activate_sums",
    "stem_conv",
    "stem_conv_moments",
    "stem_inference",
    "stem_pool",
    "stem_pool_backward",
    "stem_pool_sums",
    "stem_wgrad",
    "sums",
    "take",
    "wgrad",
    "wgrad_and_dy",
    "widen",
]
