"""Graphs of one image size opened to any height and width.

Nothing but shapes is changed: whether the nodes compute the network's own function at other sizes must be tried
(``building.fidelity``).
"""

from __future__ import annotations

import onnx

from rescompile.manifest import SizeRange


def for_sizes(model: onnx.ModelProto, sizes: SizeRange | None) -> onnx.ModelProto:
    """``model`` itself, or ``with_open_sizes`` where it shall take a range of ``sizes``."""
    return model if sizes is None else with_open_sizes(model)


def with_open_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` whose image input takes any height and width; shapes that follow from them are forgotten."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    graph = opened.graph
    del graph.value_info[:]
    constants = {tensor.name for tensor in graph.initializer}
    (image,) = (entry for entry in graph.input if entry.name not in constants)
    sides = _sides(image)
    for axis, name in zip(sides, ("H", "W"), strict=True):
        image.type.tensor_type.shape.dim[axis].dim_param = name
    for output in graph.output:
        for axis, dim in enumerate(output.type.tensor_type.shape.dim[2:]):
            dim.dim_param = f"{output.name}.{'HW'[axis % 2]}"
    return opened


def _sides(image: onnx.ValueInfoProto) -> tuple[int, int]:
    """Axes of height and width: pixels [N, H, W, C] have their channels last."""
    dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    return (1, 2) if 1 <= dims[3] <= 4 and not 1 <= dims[1] <= 4 else (2, 3)
