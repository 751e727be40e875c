"""Channel factors moved into the weights: the same function, with channels of similar range.

    W'[o, k] = W[o, k] * f_in[k] / f_out[o],   b'[o] = b[o] / f_out[o]

A batch norm that stays takes f_in / f_out into its factor, f_in into its mean and f_out into its offset. Every
inner tensor then holds its channels divided by their factors; images and logits stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.methods.channel_groups import ChannelGroups, channel_groups
from calibration.network import input_channels
from calibration.operators import operator
from rescompile.errors import GraphError
from rescompile.graph.shared.metadata import set_factors
from rescompile.graph.shared.topology import block_outputs

Array = NDArray[np.float64]


def equalize(model: onnx.ModelProto, factors: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """``model`` with ``factors`` moved into its weights; it records those of its block outputs.

    Args:
        model: folded fp32 graph, canonically named.
        factors: [C] for every quantized tensor; channels that the network ties to each other must have the same.

    Raises:
        GraphError: tied channels have different factors, or a factor is not a positive number.
    """
    groups = channel_groups(model)
    by_group = _by_group(groups, factors)
    equalized = onnx.ModelProto()
    equalized.CopyFrom(model)
    constants = {entry.name: entry for entry in equalized.graph.initializer}
    for node in equalized.graph.node:
        channels = operator(node.op_type).channels
        if channels in ("made", "normalized") and node.input[0] in groups.of:
            f_in, f_out = (by_group[groups.of[name]] for name in (node.input[0], node.output[0]))
            if (f_in == 1).all() and (f_out == 1).all():
                continue
            parameters = [constants[name] for name in node.input[1:]]
            changed = _weighted if channels == "made" else _normalized
            values = changed(node, [_array(each) for each in parameters], f_in, f_out)
            for tensor, new in zip(parameters, values, strict=True):
                _replace(tensor, new)
    ends = [name for name in block_outputs(model).values() if name in groups.of]
    set_factors(equalized, {name: by_group[groups.of[name]] for name in ends})
    return equalized


def _weighted(node: onnx.NodeProto, parameters: list[Array], f_in: Array, f_out: Array) -> list[Array]:
    """New weight, and bias if there is one, of a convolution or Gemm."""
    settings = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    turned = node.op_type == "Gemm" and not settings.get("transB")
    weight = parameters[0].T if turned else parameters[0]
    read = f_in[input_channels(len(weight), weight.shape[1], settings.get("group", 1))]
    taps = [1] * (weight.ndim - 2)
    new = weight / f_out.reshape(-1, 1, *taps) * read.reshape(*read.shape, *taps)
    return [new.T if turned else new, *(bias / f_out for bias in parameters[1:])]


def _normalized(node: onnx.NodeProto, parameters: list[Array], f_in: Array, f_out: Array) -> list[Array]:
    """New factor, offset, mean and variance of a batch norm."""
    gamma, beta, mean, variance = parameters
    return [gamma * f_in / f_out, beta / f_out, mean / f_in, variance]


def _by_group(groups: ChannelGroups, factors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    found = np.ones(groups.count)
    for name, values in factors.items():
        ids = groups.of[name]
        if len(values) != len(ids) or not (np.isfinite(values).all() and (values > 0).all()):
            raise GraphError(f"the factors of '{name}' are not {len(ids)} positive numbers: calibrate again")
        found[ids] = values
    found[0] = 1.0
    for name, values in factors.items():
        if not np.array_equal(found[groups.of[name]].astype(np.float32), values):
            raise GraphError(
                f"'{name}' shares channels with another tensor, but not their factors: calibrate again"
            )
    return found


def _array(tensor: onnx.TensorProto) -> NDArray[np.float64]:
    return numpy_helper.to_array(tensor).astype(np.float64)


def _replace(tensor: onnx.TensorProto, values: NDArray[np.float64]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
