"""Candidate tiles for a problem: a short menu, cut to the problem's size and pruned.

The tuner times these, ``benchmarks.compiled_kernels`` compiles them (and fails where one spills), and
``choice.default_tile`` takes the first. A tile is pruned where shared memory does not hold its operands, where
registers do not hold its sums (found by compiling for sm_90), where it is larger than the problem, and where it leaves
processors idle that a smaller tile would use.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fused_kernels.gpus import HOPPER
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

PROCESSORS = 132
"""Multiprocessors of an H100 or H200."""
MOST = 12
"""The largest number of candidates for one problem."""
MOST_WINDOWED = 5
"""Most tiles of a convolution wider than 1x1; each is a candidate in both forms, see ``Tile.flat``."""
STEP_BYTES = 128
"""Depth of a step: the widest swizzle of shared memory, and 64 elements in 16 bits."""
CHAIN_BYTES = 64
"""Bytes of a pixel of z that a chain holds at a time."""
WORKSPACE_SHARE = 1 / 16
"""Share of the bytes of a wgrad's operands that a workspace may move to give each processor a second program."""
LEAST_STEPS = 8
"""Fewest steps of one part of a split reduction; with fewer the workspace costs more than it saves."""
DEEP = 1_024
"""Multiplications for each output from which a large tile is worth its registers: reading both operands from the L2
cache then takes longer than the tensor cores do, and a tile half as tall reads half as much again."""
SHORT = 512
"""Multiplications for each output below which a product with a residual takes long to read and write beside them."""
WIDE_INPUT = 512
"""Channels of relu(bn(x)) from which reading them from the L2 cache again, for every 64 channels of dy, takes longer
than everything else in the gradient of a 1x1's weight that makes dy."""
NARROW_CHAIN = 64
"""Most channels of a 3x3 with which a chain of fp16 needs at most 128 registers for 8 warps; others spill."""
_SCRATCH = 2_560
"""Bytes of shared memory beside the operands: sums that cross warps, and alignment; an upper bound over all kernels."""

_ALONE = Tile(128, 128, warps=8, stages=3)
# k = 0: a step of STEP_BYTES. Those that read the least for each output come first
_TENSOR_CORES = (
    _ALONE,
    Tile(128, 128, warps=8, stages=4),
    Tile(64, 128, warps=4, stages=3),
    Tile(256, 128, warps=8, stages=3),
    Tile(256, 64, warps=8, stages=3),
    Tile(128, 64, warps=4, stages=3),
    Tile(64, 256, warps=8, stages=3),
    Tile(64, 64, warps=4, stages=4),
    Tile(128, 64, warps=8, stages=4),
    Tile(64, 32, warps=4, stages=4),
)
# beside the sums of a batch norm; limits found by compiling for sm_90, where none of these spills: with 8 warps a
# processor holds two programs of at most 128 registers, with 4 warps three of 168
_WITH_SUMS = (
    Tile(64, 128, warps=4, stages=3, registers=168),
    Tile(128, 128, warps=8, stages=3, registers=128),
    Tile(128, 64, warps=8, stages=3, registers=128),
)
# the limit gives a processor a second program, which works where the first one waits; without it up to 147
_PLAIN = Tile(128, 128, warps=8, stages=3, registers=128)
# a residual takes registers too: 128x128 has one program, and multiplies nothing while it reads and writes
_WITH_RESIDUAL = Tile(128, 64, warps=4, stages=3)
# without tensor cores the operands pass through registers too, and ptxas spills at most other sizes
_FLOAT32 = (Tile(64, 64, warps=8, stages=3), Tile(32, 32, 16, warps=4, stages=3))
# 64 columns at most, and few taps deep: memory decides
_STEM = (Tile(128, 64, warps=8, stages=4), Tile(64, 64, warps=4, stages=4), Tile(256, 64, warps=8, stages=3))
_WGRAD = (
    Tile(128, 128, warps=8, stages=3),
    Tile(64, 128, warps=4, stages=3),
    Tile(128, 64, warps=4, stages=3),
    Tile(64, 64, warps=4, stages=4),
)
# that make dy too: four vectors of its channels, g and y are in registers beside the sums, so that only tiles of few
# channels of dy leave a processor two programs; the first is for an input that is taken as it is
_WGRAD_AND_DY = Tile(256, 64, 32, warps=8, stages=3, registers=128)
_WGRAD_AND_DY_OF_BN = Tile(128, 64, warps=4, stages=3)
_WGRAD_FLOAT32 = (Tile(64, 64, warps=8, stages=3), Tile(32, 32, warps=4, stages=3))
# n = 0: as many columns of z at a time as are CHAIN_BYTES
_CHAIN = (
    Tile(128, 0, warps=8, stages=3),
    Tile(64, 0, warps=4, stages=3),
    Tile(128, 64, warps=8, stages=3),
    Tile(64, 64, warps=4, stages=3),
    Tile(128, 0, warps=8, stages=2),
    Tile(64, 0, warps=8, stages=2),
    Tile(64, 32, warps=4, stages=2),
)
_CHAIN_FLOAT32 = (Tile(16, 32, 32, warps=8, stages=2),)
_MENUS = {
    "chain": (_CHAIN, _CHAIN_FLOAT32),
    "wgrad": (_WGRAD, _WGRAD_FLOAT32),
    "stem": (_STEM, _FLOAT32),
    "product": (_TENSOR_CORES, _FLOAT32),
}
"""Menus by kind of problem: with tensor cores, and for fp32."""

_SUMS = {"moments", "drelu", "block_gradient"}
"""Epilogues with sums of a batch norm."""
_PLAIN_EPILOGUES = {"store", "bias", "bias_relu", "logits", "requantize", "requantize_relu"}
"""Epilogues that need no second tensor and no sums."""


def candidates(problem: Problem, *, shared: int = HOPPER) -> list[Tile]:
    """At most ``MOST`` tiles for ``problem`` where a program has ``shared`` bytes of shared memory, best guess first.

    Nothing is ever pruned to an empty list: the smallest tile is right for every problem and every GPU.
    """
    cut = list(dict.fromkeys(_cut(tile, problem) for tile in _menu(problem)))
    fitting = [
        tile for tile in cut if needed_by(tile, problem) <= shared and registers_suffice(tile, problem)
    ]
    if problem.kind == "wgrad":
        return [split for tile in fitting for split in _splits(tile, problem)][:MOST]
    busy = _busy(fitting or cut[-1:], problem)
    if not has_flat_form(problem):
        return busy[:MOST]
    return [replace(tile, flat=flat) for flat in (False, True) for tile in busy[:MOST_WINDOWED]]


def registers_suffice(tile: Tile, problem: Problem) -> bool:
    """Whether the kernel compiles for sm_90 without spilling more than 16 bytes of registers to memory."""
    if problem.kind == "chain":
        return _chain_registers(tile, problem) <= 176
    sums = tile.m * tile.n // (32 * tile.warps)
    if problem.epilogue == "stem_pool":
        sums *= 2  # the maximum so far stays beside them
    if problem.dtype == torch.float32:
        return sums <= 32
    if sums > 64:
        int8_window = problem.dtype == torch.int8 and _windowed(problem)
        return problem.prologue == "identity" and problem.epilogue in _PLAIN_EPILOGUES and not int8_window
    if problem.epilogue == "dy" and problem.prologue != "identity":
        return tile.n // tile.warps < 32  # x, g and y are in registers beside the sums
    if problem.kind == "fprop" and problem.prologue != "identity" and _windowed(problem):
        # the prologue holds its rows in registers, beside their place in the plane for every tap
        return tile.m // tile.warps < 32 or tile.n < 64
    return True


def needed_by(tile: Tile, problem: Problem) -> int:
    """An upper bound on a program's bytes of shared memory: an operand tile of each kind for every stage."""
    size = problem.dtype.itemsize
    if problem.kind != "chain":
        columns = 2 * tile.n if problem.epilogue == "dy" else tile.n  # g and y
        return tile.stages * (tile.m + columns) * tile.k * size + _SCRATCH
    window = tile.stages * (tile.m + problem.c) * tile.k
    # a block of z: weights to it and from it, its residual; beside them the 3x3's result, as an operand
    columns = tile.stages * tile.n * (problem.c + problem.following + tile.m) + tile.m * problem.c
    return max(window, columns) * size + _SCRATCH


def _chain_registers(tile: Tile, problem: Problem) -> float:
    """Registers of a thread: sums of the 3x3; or its result, the columns of z at hand and the sums of what follows."""
    result = problem.c * problem.dtype.itemsize / 4
    return tile.m * max(problem.c, result + tile.n + problem.following) / (32 * tile.warps)


def has_flat_form(problem: Problem) -> bool:
    """Whether ``Tile.flat`` makes another kernel that is worth trying; a stem's, one tap wide, is always flat."""
    tensor_cores = problem.dtype != torch.float32
    return problem.kind != "wgrad" and _windowed(problem) and tensor_cores and not _is_stem(problem)


def programs(tile: Tile, problem: Problem) -> int:
    """Programs of the launch."""
    tiles = -(-problem.rows // tile.m)
    if problem.kind == "chain":
        return tiles
    tiles *= -(-problem.cols // tile.n)
    if problem.kind == "dgrad":
        return tiles * problem.conv.dgrad().parities
    return tiles * problem.conv.r * problem.conv.s * tile.splits if problem.kind == "wgrad" else tiles


def fit(size: int, largest: int, *, low: int = 16) -> int:
    """The smallest power of two that holds ``size``, from ``low`` to ``largest``."""
    return max(low, min(largest, 1 << (size - 1).bit_length()))


def _menu(problem: Problem) -> list[Tile]:
    family = problem.kind if problem.kind in _MENUS else "stem" if _is_stem(problem) else "product"
    menu = _MENUS[family][problem.dtype == torch.float32]
    if family == "product" and problem.dtype != torch.float32:
        menu = (*_first(problem), *menu)
    if family == "wgrad" and problem.dtype != torch.float32:
        menu = (*_first_of_wgrad(problem), *menu)
    if problem.kind == "chain" and problem.dtype == torch.float16 and problem.c <= NARROW_CHAIN:
        menu = (replace(menu[0], registers=128), *menu)  # two programs on a processor
    size = problem.dtype.itemsize
    menu = tuple(
        replace(tile, n=tile.n or CHAIN_BYTES // size, k=tile.k or STEP_BYTES // size) for tile in menu
    )
    # a tile of more than twice the columns would be cut to what a smaller one on the menu is already
    widest = max(2 * fit(problem.cols, 256), min(tile.n for tile in menu))
    return [tile for tile in menu if tile.n <= widest]


def _first(problem: Problem) -> tuple[Tile, ...]:
    """The tiles that suit an epilogue better than the menu's first one, by ``python -m benchmarks.gpu model --tiles``.

    With Triton 3.6.0 none of them spills more than 16 bytes for sm_90.
    """
    if problem.epilogue in _SUMS:
        return _with_sums(problem)
    if problem.kind == "fprop" and problem.prologue == "identity" and problem.dtype.itemsize == 2:
        if problem.epilogue in _PLAIN_EPILOGUES:
            return (_PLAIN,)
        if problem.epilogue == "bias_residual_relu" and problem.macs < SHORT * problem.outputs:
            return (_WITH_RESIDUAL,)
    return ()


def _first_of_wgrad(problem: Problem) -> tuple[Tile, ...]:
    """The tile that suits a weight's gradient better than the menu's first one; see ``_first``."""
    identity = problem.prologue == "identity"
    if problem.epilogue != "dy":
        return ()
    if identity:
        return (_WGRAD_AND_DY,)
    return (_WGRAD_AND_DY_OF_BN,) if problem.c < WIDE_INPUT else ()


def rivals(problem: Problem, *, shared: int = HOPPER) -> list[Tile]:
    """A large tile with a processor of its own, and the default, of which one holds several; none if both are one.

    Only beside sums with a long reduction, where the model prefers the second: a measurement decides
    (``benchmarks.gpu.phase_residency``).
    """
    if problem.epilogue not in _SUMS or problem.dtype == torch.float32 or not _is_long(problem):
        return []
    found = candidates(problem, shared=shared)
    alone = _cut(replace(_ALONE, k=STEP_BYTES // problem.dtype.itemsize), problem)
    return [alone, found[0]] if alone in found[1:] else []


def _is_long(problem: Problem) -> bool:
    """Whether the reduction is so long beside sums of a second tensor that a large tile is worth its registers."""
    second_operand = problem.epilogue != "moments" or problem.prologue != "identity"
    return second_operand and problem.cols > 64 and problem.macs >= DEEP * problem.outputs


def _with_sums(problem: Problem) -> tuple[Tile, ...]:
    """The first tile beside sums: as large as its registers allow with several programs on a processor.

    Before it, where the reduction is long, the largest one (``python -m benchmarks.gpu model --tiles``).
    """
    narrow, square, slim = _WITH_SUMS
    if problem.cols <= slim.n:
        return (slim,)
    if problem.epilogue == "moments" and problem.prologue == "identity":
        return (square,)
    if _windowed(problem) and (problem.prologue != "identity" or problem.conv.stride > 1):
        narrow = replace(narrow, registers=0)  # 170 to 230: two programs; a limit of 168 spills up to nine
    return (*_large(problem, square), narrow) if _is_long(problem) else (narrow,)


def _large(problem: Problem, square: Tile) -> tuple[Tile, ...]:
    """The largest tile of which a processor holds two programs; one where registers would spill."""
    if problem.epilogue == "drelu":
        if problem.conv.stride > 1:
            return ()
        return (replace(square, stages=2) if _windowed(problem) else square,)
    if problem.epilogue == "moments" and _windowed(problem):
        return (replace(square, k=32, stages=2),)
    return (replace(square, registers=0),)


def _cut(tile: Tile, problem: Problem) -> Tile:
    """``tile``, no larger than the problem: never below what a tensor core takes, 64 rows of pixels or 16 channels."""
    least_rows = 16 if problem.kind == "wgrad" or problem.dtype == torch.float32 else 64
    least_depth = 32 if problem.dtype == torch.int8 else 16
    m = fit(problem.rows, tile.m, low=min(tile.m, least_rows))
    n = fit(problem.cols, tile.n)
    # a chain's warps hold sums of c and of following channels, however few columns of z
    keeps_warps = problem.kind == "chain" or (m, n) == (tile.m, tile.n) or m * n >= 32 * 32 * tile.warps
    warps = tile.warps if keeps_warps else 4
    return replace(tile, m=m, n=n, k=fit(problem.depth, tile.k, low=least_depth), warps=warps)


def _busy(tiles: list[Tile], problem: Problem) -> list[Tile]:
    """Tiles with a program for every processor, or else those with the most programs, down to half as many."""
    most = max(programs(tile, problem) for tile in tiles)
    if most < PROCESSORS:
        tiles = sorted(tiles, key=lambda tile: -programs(tile, problem))
    return [tile for tile in tiles if programs(tile, problem) >= min(PROCESSORS, most / 2)]


def _splits(tile: Tile, problem: Problem) -> list[Tile]:
    """``tile`` with its reduction in the usual number of parts, in twice and in half as many.

    The usual number gives each processor one program, or up to two, which hide each other's latency, where writing and
    reading the workspace costs little beside reading the operands.
    """
    steps, each = -(-problem.depth // tile.k), programs(tile, problem)
    operands = problem.depth * (problem.rows + problem.cols) * problem.dtype.itemsize
    part = 2 * 4 * problem.conv.r * problem.conv.s * problem.rows * problem.cols
    cheap = int(WORKSPACE_SHARE * operands) // part
    even = min(2 * PROCESSORS // each, max(PROCESSORS // each, cheap))
    even = max(1, min(even, steps // LEAST_STEPS))
    return [
        replace(tile, splits=splits)
        for splits in dict.fromkeys((even, min(2 * even, steps), max(1, even // 2)))
    ]


def _windowed(problem: Problem) -> bool:
    return problem.conv.r * problem.conv.s > 1


def _is_stem(problem: Problem) -> bool:
    return problem.epilogue.startswith("stem")
