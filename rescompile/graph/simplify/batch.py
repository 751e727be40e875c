"""Sizes and constants that hold the number of images, rewritten so that the graph takes any number.

A graph is opened for one image, and what its exporter computed from the number of images is folded into constants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs


def free_batch(graph: gs.Graph, for_two: Callable[[], gs.Graph] | None) -> None:
    """Let ``graph`` take any number of images.

    ``for_two`` opens the same network for two images, which shows what depends on their number; None where the file is
    made for one number.
    """
    batch = graph.inputs[0].shape[0]
    for node in graph.nodes:
        if node.op == "Resize":
            _scale(node)
    fixed = [node for node in graph.nodes if node.op == "Reshape" and not _copies_batch(node, batch)]
    if fixed and for_two is not None:
        _compare_sizes(fixed, for_two())
    for node in [node for node in graph.nodes if node.op == "Concat"]:
        _free_constants(graph, node)


def _copies_batch(reshape: gs.Node, batch: int) -> bool:
    """Whether ``reshape`` takes the number of images from its input, as it is made to where it keeps them in front."""
    if not isinstance(reshape.inputs[1], gs.Constant):
        return True
    sizes, before = reshape.inputs[1].values.tolist(), reshape.inputs[0].shape
    zero_is_a_size = reshape.attrs.get("allowzero", 0) and 0 in sizes
    if sizes and before and sizes[0] == before[0] == batch and not zero_is_a_size:
        _set_sizes(reshape, [0, *sizes[1:]])
        return True
    return not sizes or zero_is_a_size or sizes[0] == 0


def _set_sizes(reshape: gs.Node, sizes: list[int]) -> None:
    reshape.inputs[1] = gs.Constant(f"{reshape.outputs[0].name}.shape", np.array(sizes, np.int64))
    reshape.attrs.pop("allowzero", None)


def _compare_sizes(reshapes: list[gs.Node], two: gs.Graph) -> None:
    """Leave the size of each Reshape open that grows with the number of images, as in attention of several heads."""
    known = two.tensors()
    for node in reshapes:
        one = node.outputs[0]
        other = known.get(one.name)
        if other is None or not _is_known(one) or not _is_known(other):
            continue
        grows = [
            index for index, pair in enumerate(zip(one.shape, other.shape, strict=True)) if len(set(pair)) > 1
        ]
        if len(grows) == 1:
            _set_sizes(node, [-1 if index in grows else size for index, size in enumerate(one.shape)])


def _is_known(tensor: gs.Tensor) -> bool:
    return bool(tensor.shape) and all(isinstance(side, int) and side > 0 for side in tensor.shape)


def _scale(resize: gs.Node) -> None:
    """Give a Resize to a fixed height and width its scale factors instead, so that it works for any batch."""
    before, sizes = resize.inputs[0].shape, resize.inputs[3] if len(resize.inputs) > 3 else None
    if not isinstance(sizes, gs.Constant) or not before or len(before) != 4 or "axes" in resize.attrs:
        return
    after = sizes.values.tolist()
    scales = np.array([1, 1, after[2] / before[2], after[3] / before[3]], np.float32)
    if after[:2] == list(before[:2]) and (np.floor(np.array(before) * scales) == after).all():
        resize.inputs = [*resize.inputs[:2], gs.Constant(f"{resize.outputs[0].name}.scales", scales)]


def _free_constants(graph: gs.Graph, concat: gs.Node) -> None:
    """Join constants to tensors, as a transformer's class token to the patches, for any number of images.

    A Concat does not repeat a constant of one image for the others, so the tensor beside it gets zeros in its place, to
    which the constant is added.
    """
    rank = len(concat.outputs[0].shape or ())
    constants = [each.values for each in concat.inputs if isinstance(each, gs.Constant)]
    if len(constants) in (0, len(concat.inputs)) or rank == 0 or concat.attrs["axis"] % rank == 0:
        return
    known = all(each.shape for each in concat.inputs)
    if known and all(_is_same_for_all(each, graph.inputs[0].shape[0]) for each in constants):
        parts = _written_into_tensors(graph, concat, concat.attrs["axis"] % rank)
        if len(parts) > 1:
            concat.inputs = parts
        else:
            parts[0].inputs[0].outputs = list(concat.outputs)
            concat.outputs.clear()


def _is_same_for_all(values: np.ndarray, batch: int) -> bool:
    return values.dtype.kind == "f" and len(values) == batch and bool((values == values[:1]).all())


def _written_into_tensors(graph: gs.Graph, concat: gs.Node, axis: int) -> list[gs.Tensor]:
    """The tensors that ``concat`` joins along ``axis``, with its constants added into the ones beside them."""
    before: list[np.ndarray] = []
    groups: list[tuple[list[np.ndarray], gs.Tensor, list[np.ndarray]]] = []
    for tensor in concat.inputs:
        if isinstance(tensor, gs.Constant):
            (groups[-1][2] if groups else before).append(tensor.values[:1])
        else:
            groups.append(([] if groups else before, tensor, []))
    return [
        _extended(graph, f"{concat.outputs[0].name}.{index}", group, axis)
        if group[0] or group[2]
        else group[1]
        for index, group in enumerate(groups)
    ]


def _extended(
    graph: gs.Graph, name: str, group: tuple[list[np.ndarray], gs.Tensor, list[np.ndarray]], axis: int
) -> gs.Variable:
    """The tensor of ``group`` between the constants before and after it."""
    before, tensor, after = group
    shape, rank = list(tensor.shape), len(tensor.shape)
    values = np.concatenate([*before, np.zeros([1, *shape[1:]], np.float32), *after], axis, dtype=np.float32)
    amounts = np.zeros(2 * rank, np.int64)
    amounts[axis], amounts[rank + axis] = (sum(each.shape[axis] for each in side) for side in (before, after))
    shape[axis] = values.shape[axis]
    padded, found = (gs.Variable(f"{name}.{part}", np.float32, shape) for part in ("padded", "joined"))
    pads, constant = gs.Constant(f"{name}.pads", amounts), gs.Constant(f"{name}.constant", values)
    graph.nodes.append(gs.Node("Pad", padded.name, {}, [tensor, pads], [padded]))
    if not values.any():
        return padded
    graph.nodes.append(gs.Node("Add", found.name, {}, [padded, constant], [found]))
    return found
