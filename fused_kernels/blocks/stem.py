"""Stems, forward and backward: convolution, batch norm, ReLU and, on large images, max pool.

Forward:   y = conv(image) + moments;   z = maxpool(relu(bn(y))) in one pass, with the place of each maximum
Backward:  sums of g, which is dz at the places of the maxima where bn(y) > 0;   dy = a*g + b*(y - mean) + c;   dw

g is computed in both passes and not stored. Derivation: docs/math/stem.md. ``torch_operators`` makes one differentiable
operator of these functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fused_kernels.blocks.batch_norm import Norm, norm_gradients, normalize
from fused_kernels.blocks.training import GradientRequest, LayerGradients, LayerTensors
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import convolution, passes, stem
from fused_kernels.specification import Layer


@dataclass(frozen=True)
class SavedStem:
    """Tensors that the backward pass needs."""

    z: Tensor
    y: Tensor
    """The convolution's output, before its batch norm."""
    vectors: Tensor
    packed: Tensor
    """The image as the convolution read it."""
    index: Tensor | None
    """Place of each maximum, where there is a max pool."""
    total: Tensor | None

    def tensors(self) -> list[Tensor]:
        """The tensors that exist, in order; the inverse is ``saved_stem``."""
        return [
            t for t in (self.z, self.y, self.vectors, self.packed, self.index, self.total) if t is not None
        ]


def saved_stem(tensors: list[Tensor], *, pool: bool) -> SavedStem:
    """The inverse of ``SavedStem.tensors``."""
    z, y, vectors, packed, *rest = tensors
    index = rest.pop(0) if pool else None
    return SavedStem(z, y, vectors, packed, index, rest[0] if rest else None)


def forward(
    image: Tensor, tensors: LayerTensors, layer: Layer, *, pool: bool
) -> tuple[SavedStem, Tensor | None]:
    """Run the stem on ``image`` [N, C, H, W] in the dtype of the weight.

    Returns:
        the saved tensors (``z`` is the result), and the running statistics' next values [2, K] where they are updated.
    """
    partials: Partials | None = None
    if layer.batch_statistics:
        y, partials, packed = stem.stem_conv_moments(image, tensors.weight, layer.conv)
    else:
        y, packed = stem.stem_conv(image, tensors.weight, layer.conv)
    (normalized,) = normalize([Norm(layer, partials, tensors.affine)])
    vectors, total = normalized.vectors, normalized.total
    z, index = stem.stem_pool(y, vectors) if pool else (passes.activate(y, vectors), None)
    return SavedStem(z, y, vectors, packed, index, total), normalized.running


def backward(
    dz: Tensor,
    image: Tensor,
    weight: Tensor,
    saved: SavedStem,
    layer: Layer,
    request: GradientRequest,
) -> tuple[Tensor | None, LayerGradients]:
    """Gradients of the image (or None where it is not requested) and of the layer."""
    dz = dz.to(saved.z.dtype)
    y, vectors, index = saved.y, saved.vectors, saved.index
    partials = (
        stem.stem_activate_sums(dz, y, vectors)
        if index is None
        else stem.stem_pool_sums(dz, index, y, vectors)
    )
    (norm,) = norm_gradients(partials, [(layer, vectors, saved.total)])
    if index is None:
        dy = stem.stem_activate_backward(dz, y, vectors, norm.coefficients)
    else:
        dy = stem.stem_pool_backward(dz, index, y, vectors, norm.coefficients)
    dw = stem.stem_wgrad(saved.packed, dy, layer.conv, image.shape[1]) if request.dw[0] else None
    dimage = None
    if request.dx:
        dimage = convolution.dgrad_shortcut(dy, weight, layer.conv, image.shape, None).to(image.dtype)
    return dimage, LayerGradients(dw, norm.dgamma, norm.dbeta)
