"""The layers behind the last block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from rescompile.models.planned import HeadLayer, NormWeights
from rescompile.sources.layers import Layer
from rescompile.sources.ordered_layers import UnreadableError


def norm_weights(layer: Layer) -> NormWeights:
    """The four vectors of a norm; without scale and shift they are one and zero."""
    mean, var = layer.tensors["running_mean"], layer.tensors["running_var"]
    weight, bias = layer.tensors.get("weight"), layer.tensors.get("bias")
    return NormWeights(
        torch.ones_like(mean) if weight is None else weight,
        torch.zeros_like(mean) if bias is None else bias,
        mean,
        var,
    )


def _gap(layer: Layer, following: Layer) -> bool:
    """Whether a module without weights may stand between two layers of the head."""
    (parent, _, place), (other, _, next_place) = (each.name.rpartition(".") for each in (layer, following))
    if parent == other and place.isdigit() and next_place.isdigit():
        return int(next_place) - int(place) > 1
    if layer.kind == "norm":
        raise UnreadableError(f"nothing says what stands between '{layer.name}' and '{following.name}'")
    return True


def head_layers(head: Sequence[Layer], channels: int) -> tuple[tuple[HeadLayer, ...], bool]:
    """The layers behind ``channels`` pooled values, and whether they read the means and the maxima of the channels.

    Raises:
        UnreadableError: the layers do not fit one another.
    """
    if not head:
        return (), False
    first = head[0]
    inputs = first.width if first.kind == "norm" else int(first.weight.shape[1])
    if inputs not in (channels, 2 * channels):
        raise UnreadableError(
            f"'{first.name}' reads {inputs} values, but the last block has {channels} channels"
        )
    concat = inputs == 2 * channels
    layers: list[HeadLayer] = []
    open_relu = False
    for layer, following in pairwise([*head, None]):
        assert layer is not None
        open_relu = open_relu or layer.kind == "linear"
        gap = following is not None and _gap(layer, following)
        # a norm in front of the first linear layer is followed by dropout alone, as in fastai
        free = open_relu and gap
        if free:
            open_relu = False
        if layer.kind == "norm":
            if layer.width != inputs:
                raise UnreadableError(f"'{layer.name}' does not read what the layer in front of it writes")
            layers.append(HeadLayer(None, norm_weights(layer), free))
            continue
        weight = layer.weight.flatten(1)
        if inputs != weight.shape[1]:
            raise UnreadableError(f"'{layer.name}' does not read what the layer in front of it writes")
        bias = layer.tensors.get("bias")
        layers.append(HeadLayer((weight, torch.zeros(len(weight)) if bias is None else bias), None, free))
        inputs = len(weight)
    return tuple(layers), concat
