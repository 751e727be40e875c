"""Bytes that one kernel launch moves between memory and chip, from the launch's own arguments.

Every tensor counts once, and where a launch walks over a part of a tensor, that part alone: the pixels that a strided
window covers. What a launch reads twice is expected from the L2 cache, as in the floors; two launches share nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from benchmarks.traffic.shapes import touched
from fused_kernels.launch import Launch, Out

Bytes = Counter[str]
"""Bytes by kind of work; ``sum(bytes.values())`` is the total."""

STATISTICS = "statistics"
WORKSPACE = "split-K workspace"


def bytes_of(launch: Launch) -> Bytes:
    """Bytes of ``launch`` by kind; see ``kind``."""
    if launch.kernel == "conv.conv_kernel":
        return _convolution(launch)
    if launch.kernel == "wgrad.wgrad_kernel":
        return _wgrad(launch)
    found = Bytes()
    for name in ("split_sum", "other_split_sum"):
        if (split_sum := launch.arguments.get(name)) is not None:
            found += Bytes({WORKSPACE: size(split_sum[0]), "wgrad": size(split_sum[1].tensor)})
    rest = _all(launch)
    rest[kind(launch)] -= found.total()
    return found + rest


def kind(launch: Launch) -> str:
    """The work of the forward or backward pass that a launch does."""
    module, function = launch.kernel.split(".")
    if launch.kernel == "conv.conv_kernel":
        return "dgrad" if launch.arguments["STEP"] < 0 else "fprop"
    if launch.kernel == "passes.bn_backward_kernel":
        return "dy pass"
    if launch.kernel == "passes.join_kernel":
        return "join"
    if module == "statistics":
        return STATISTICS
    return function.removesuffix("_kernel").replace("_", " ")


def _epilogue(launch: Launch) -> str:
    functor = launch.arguments.get("EPILOGUE")
    return "" if functor is None else str(functor.name).removeprefix("epilogues.")


def finishes_block_backward(launch: Launch) -> bool:
    """Whether this launch turns one block's gradient into the gradient that the block before starts from."""
    return launch.kernel == "conv.conv_kernel" and _epilogue(launch) == "block_gradient"


def finishes_block_inference(launch: Launch) -> bool:
    """Whether this launch adds the shortcut, after which a block's output is there."""
    return launch.kernel == "chain.chain_kernel" or _epilogue(launch) in {
        "bias_residual_relu",
        "requantize_residual",
        "requantize_residual_relu",
    }


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


def _all(launch: Launch) -> Bytes:
    found = Bytes()
    for name, value in launch.arguments.items():
        for item in value if isinstance(value, tuple) else (value,):
            tensor = item.tensor if isinstance(item, Out) else item
            if isinstance(tensor, Tensor):
                found[STATISTICS if name == "partials_ptr" else kind(launch)] += size(tensor)
    return found


def _convolution(launch: Launch) -> Bytes:
    """x where taps meet it, and all of the other tensors."""
    a = launch.arguments
    x, found = a["x_ptr"], Bytes()
    n = a["M"] // (a["P"] * a["Q"])
    # where depth exceeds the pitch (the stem), one tap reads several pixels of a row
    rows, cols = _met(a, "H", "P", a["TAPS_H"]), _met(a, "W", "Q", a["TAPS_W"] * -(-a["DEPTH"] // a["PITCH"]))
    found[kind(launch)] += n * rows * cols * a["PITCH"] * x.element_size()
    rest = a["w_ptr"], a["out_ptr"], a["zero_sums_ptr"], *a["prologue_args"], *a["epilogue_args"]
    for tensor, written in _tensors(rest):
        sums = written and tensor is not a["out_ptr"].tensor
        found[STATISTICS if sums else kind(launch)] += size(tensor)
    return found


def _met(a: dict[str, Any], plane: str, grid: str, taps: int) -> int:
    """Coordinates of x along one axis that a tap of a point of the output meets."""
    base = a[f"BASE_{plane}"]
    if a["STEP"] > 0:
        return touched(a[plane], a[grid], taps, stride=a["IN_STRIDE"], base=base)
    # dgrad: coordinate p of dy meets o where o + padding = p * stride + tap
    stride, size_of_output = a["OUT_STRIDE"], a[f"OUT_{plane}"]
    return sum(
        any(0 <= at * stride - base + tap < size_of_output for tap in range(taps)) for at in range(a[plane])
    )


def _wgrad(launch: Launch) -> Bytes:
    a = launch.arguments
    x, dy, dw = a["x_ptr"], a["dy_ptr"], a["dw_ptr"].tensor
    rows = touched(a["H"], a["P"], a["R"], stride=a["STRIDE"], base=-a["PADDING_H"])
    pixels = a["S"] * -(-a["C"] // a["PITCH"])
    cols = touched(a["W"], a["Q"], pixels, stride=a["STRIDE"], base=-a["PADDING_W"])
    n = a["M"] // (a["P"] * a["Q"])
    moved = n * rows * cols * a["PITCH"] * x.element_size()
    moved += sum(size(tensor) for tensor in a["prologue_args"])
    parts, found = dw.ndim == 2, Bytes()
    if a["norm_args"] is None:
        moved += size(dy)
    else:  # it reads g and y, and writes dy
        found["dy pass"] = size(dy) + sum(size(tensor) for tensor, _ in _tensors(a["norm_args"]))
    return found + Bytes({"wgrad": moved + (0 if parts else size(dw)), WORKSPACE: size(dw) if parts else 0})


def _tensors(values: tuple[object, ...]) -> Iterator[tuple[Tensor, bool]]:
    for value in values:
        if isinstance(value, Out):
            yield value.tensor, True
        elif isinstance(value, Tensor):
            yield value, False
