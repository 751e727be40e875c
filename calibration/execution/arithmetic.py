"""Arithmetic and activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.execution.attributes import (
    Attributes,
    Operation,
    Optional,
    text_of,
)


def _divide(at: Attributes, left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def folded(at: Attributes, *inputs: Tensor) -> Tensor:
        result = inputs[0]
        for each in inputs[1:]:
            result = function(result, each)
        return result

    return folded


def _mean(at: Attributes, *inputs: Tensor) -> Tensor:
    return _variadic(torch.add)(at, *inputs) / len(inputs)


def _clip(at: Attributes, x: Tensor, low: Optional = None, high: Optional = None) -> Tensor:
    bounds = [at.get("min") if low is None else low.item(), at.get("max") if high is None else high.item()]
    return x if bounds == [None, None] else x.clamp(*bounds)


def _hard_sigmoid(at: Attributes, x: Tensor) -> Tensor:
    return (float(at.get("alpha", 0.2)) * x + float(at.get("beta", 0.5))).clamp(0, 1)


def _celu(at: Attributes, x: Tensor) -> Tensor:
    return F.celu(x, at.get("alpha", 1.0))


def _elu(at: Attributes, x: Tensor) -> Tensor:
    return F.elu(x, at.get("alpha", 1.0))


def _selu(at: Attributes, x: Tensor) -> Tensor:
    alpha, gamma = at.get("alpha", 1.67326319217681884765625), at.get("gamma", 1.05070102214813232421875)
    return F.elu(x, alpha) * float(gamma)


def _gelu(at: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=text_of(at.get("approximate", "none")))


def _thresholded(at: Attributes, x: Tensor) -> Tensor:
    return torch.where(x > at.get("alpha", 1.0), x, torch.zeros((), dtype=x.dtype))


ARITHMETIC: dict[str, Operation] = {
    "Add": lambda at, left, right: left + right,
    "Sub": lambda at, left, right: left - right,
    "Mul": lambda at, left, right: left * right,
    "Div": _divide,
    "Sum": _variadic(torch.add),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mean": _mean,
    "Relu": lambda at, x: x.relu(),
    "Abs": lambda at, x: x.abs(),
    "Neg": lambda at, x: -x,
    "LeakyRelu": lambda at, x: F.leaky_relu(x, at.get("alpha", 0.01)),
    "PRelu": lambda at, x, slope: torch.where(x < 0, x * slope, x),
    "ThresholdedRelu": _thresholded,
    "Clip": _clip,
    "Sigmoid": lambda at, x: x.sigmoid(),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda at, x: F.hardswish(x),
    "Softplus": lambda at, x: F.softplus(x),
    "Mish": lambda at, x: F.mish(x),
    "Softsign": lambda at, x: F.softsign(x),
    "Gelu": _gelu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Tanh": lambda at, x: x.tanh(),
    "Erf": lambda at, x: x.erf(),
    "Exp": lambda at, x: x.exp(),
    "Log": lambda at, x: x.log(),
    "Sqrt": lambda at, x: x.sqrt(),
    "Reciprocal": lambda at, x: x.reciprocal(),
    "Pow": lambda at, x, power: x.pow(power),
    "Floor": lambda at, x: x.floor(),
    "Ceil": lambda at, x: x.ceil(),
    "Softmax": lambda at, x: x.softmax(at.get("axis", -1)),
    "LogSoftmax": lambda at, x: x.log_softmax(at.get("axis", -1)),
}
"""Functions by ONNX operator."""
