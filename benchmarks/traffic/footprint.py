"""Bytes that one kernel launch moves between memory and chip, from the launch's own arguments.

Every tensor counts once, and where a launch walks over a part of a tensor, that part alone: the pixels that a strided
window covers, the quarter of the input gradient that one parity of a strided dgrad writes, its rows of partial sums.
What a launch reads twice is expected from the L2 cache, as in the floors; two launches share nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

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
    if launch.kernel != "conv.conv_kernel" or _epilogue(launch) != "block_gradient":
        return False
    # a strided dgrad is a launch for each parity, (stride - 1, stride - 1) the last
    a = launch.arguments
    return bool(a["OUT_BASE_H"] == a["OUT_BASE_W"] == a["OUT_STRIDE"] - 1)


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
    """x where taps meet it, the taps' weights, and this launch's rows of the output and of tensors like it."""
    a = launch.arguments
    x, w, out = a["x_ptr"], a["w_ptr"], a["out_ptr"].tensor
    rows = touched(a["H"], a["P"], a["TAPS_H"], stride=a["IN_STRIDE"], base=a["BASE_H"], step=a["STEP"])
    # where depth exceeds the pitch (the stem), one tap reads several pixels of a row
    pixels = a["TAPS_W"] * -(-a["DEPTH"] // a["PITCH"])
    cols = touched(a["W"], a["Q"], pixels, stride=a["IN_STRIDE"], base=a["BASE_W"], step=a["STEP"])
    n = a["M"] // (a["P"] * a["Q"])
    moved = n * rows * cols * a["PITCH"] * x.element_size()
    moved += a["TAPS_H"] * a["TAPS_W"] * a["DEPTH"] * a["COLS"] * w.element_size()
    moved += a["M"] * a["COLS"] * out.element_size()
    moved += sum(size(tensor) for tensor in a["prologue_args"])
    if a["zero_sums_ptr"] is not None:
        moved += size(a["zero_sums_ptr"])
    found = Bytes()
    for tensor, written in _tensors(a["epilogue_args"]):
        if written:  # partial sums: one row for each of this launch's tiles
            found[STATISTICS] += (
                tensor.shape[0] * -(-a["M"] // a["BLOCK_M"]) * a["COLS"] * tensor.element_size()
            )
        elif tensor.shape == out.shape:
            moved += a["M"] * a["COLS"] * tensor.element_size()
        elif tensor.ndim == 4:
            moved += n * _met_by_shortcut(launch) * a["COLS"] * tensor.element_size()
        else:
            moved += size(tensor)
    found[kind(launch)] += moved
    return found


def _met_by_shortcut(launch: Launch) -> int:
    """Pixels of one image of a compact shortcut that this launch's rows add."""
    a = launch.arguments
    stride = int(a["epilogue_args"][3])
    h = (at * a["OUT_STRIDE"] + a["OUT_BASE_H"] for at in range(a["P"]))
    w = (at * a["OUT_STRIDE"] + a["OUT_BASE_W"] for at in range(a["Q"]))
    rows, cols = (sum(at % stride == 0 for at in axis) for axis in (h, w))
    return int(rows * cols)


def _wgrad(launch: Launch) -> Bytes:
    a = launch.arguments
    x, dy, dw = a["x_ptr"], a["dy_ptr"], a["dw_ptr"].tensor
    rows = touched(a["H"], a["P"], a["R"], stride=a["STRIDE"], base=-a["PADDING_H"])
    pixels = a["S"] * -(-a["C"] // a["PITCH"])
    cols = touched(a["W"], a["Q"], pixels, stride=a["STRIDE"], base=-a["PADDING_W"])
    n = a["M"] // (a["P"] * a["Q"])
    moved = n * rows * cols * a["PITCH"] * x.element_size() + size(dy)
    moved += sum(size(tensor) for tensor in a["prologue_args"])
    parts = dw.ndim == 2
    return Bytes({"wgrad": moved + (0 if parts else size(dw)), WORKSPACE: size(dw) if parts else 0})


def _tensors(values: tuple[object, ...]) -> Iterator[tuple[Tensor, bool]]:
    for value in values:
        if isinstance(value, Out):
            yield value.tensor, True
        elif isinstance(value, Tensor):
            yield value, False
