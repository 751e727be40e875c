"""Normalizations."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from calibration.execution.attributes import (
    Attributes,
    Operation,
    Optional,
    Unsupported,
)


def _batch_norm(at: Attributes, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if at.get("training_mode"):
        raise Unsupported("training_mode")
    return F.batch_norm(x, mean, var, gamma, beta, eps=at.get("epsilon", 1e-5))


def _group_norm(at: Attributes, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    groups = at["num_groups"]
    if len(gamma) == groups != x.shape[1]:  # opset 18 has one factor for each group
        gamma, beta = (values.repeat_interleave(x.shape[1] // groups) for values in (gamma, beta))
    return F.group_norm(x, groups, gamma, beta, at.get("epsilon", 1e-5))


def _layer_norm(at: Attributes, x: Tensor, gamma: Tensor, beta: Optional = None) -> Tensor:
    axis = at.get("axis", -1) % x.ndim
    y = F.layer_norm(x, x.shape[axis:], eps=at.get("epsilon", 1e-5)) * gamma
    return y if beta is None else y + beta


def _lrn(at: Attributes, x: Tensor) -> Tensor:
    size = at["size"]
    squares = F.pad(x.square().unsqueeze(1), [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2])
    near = squares.unfold(2, size, 1).sum(-1).squeeze(1) / size
    power = near.mul(at.get("alpha", 1e-4)).add(at.get("bias", 1.0)).pow(at.get("beta", 0.75))
    divided: Tensor = x / power
    return divided


NORMALIZATIONS: dict[str, Operation] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": lambda at, x, gamma, beta: F.instance_norm(
        x, weight=gamma, bias=beta, eps=at.get("epsilon", 1e-05)
    ),
    "LRN": _lrn,
}
"""Functions by ONNX operator."""
