"""The tables as text for a terminal and as the page docs/traffic.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import torch

from benchmarks.traffic import floors, ours
from benchmarks.traffic.differences import differences
from benchmarks.traffic.footprint import Bytes
from benchmarks.traffic.shapes import resnet
from benchmarks.traffic.tables import Row, Table, inference, training

GB = 1e9
HEADER = ("", "eager", "torch.compile", "ours", "floor", "ours / floor")
PUBLISHED = {
    # batch: eager, compile, fusedA in GB for a training step in 16 bits; pool and chain in MB for inference
    32: (16.0, 12.4, 9.0, 1699, 1198),
    128: (61.3, 47.0, 33.7, 6641, 4637),
    256: (121.7, 93.1, 66.6, 13231, 9223),
}
"""ResNet-50's figures of the analysis that set this project's goals; the formulas here are to reproduce them."""
BAR = 1.10
"""Largest ratio to the floor that a pass may have without an explanation on the page."""


def cells(row: Row) -> tuple[str, ...]:
    """One row of ``HEADER``, in GB."""
    return (row.name, *(f"{total / GB:.3f}" for total in row.totals), f"{row.ratio:.3f}")


def verdict(table: Table) -> str:
    """Compare the whole network in one line."""
    eager, compiled, mine, floor = (total / GB for total in table.total.totals)
    name = "fusedA" if table.training else "pool"
    return (
        f"{mine:.2f} GB, {table.total.ratio:.3f} of the {name} floor ({floor:.2f} GB);"
        f" torch.compile {compiled / mine:.2f} times as much, eager {eager / mine:.2f} times"
    )


def as_text(table: Table) -> str:
    """Aligned columns, GB."""
    body = [HEADER, *(cells(row) for row in (*table.rows, table.total))]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = [f"{table.title}, GB"]
    for name, *figures in body:
        right = (f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=True))
        lines.append("  ".join((f"{name:<{widths[0]}}", *right)))
    return "\n".join((*lines, verdict(table)))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = [f"| {' | '.join(header)} |", "|---|" + "--:|" * (len(header) - 1)]
    return "\n".join((*lines, *(f"| {' | '.join(row)} |" for row in rows)))


def by_kind(row: Row) -> str:
    """Fused operators and floor of some rows, kind by kind."""
    kinds = sorted(row.ours | row.floor, key=lambda kind: -max(row.ours[kind], row.floor[kind]))
    figures = (
        (
            kind,
            *(f"{column[kind] / GB:.3f}" for column in (row.ours, row.floor)),
            _signed(row.ours[kind] - row.floor[kind]),
        )
        for kind in kinds
        if max(row.ours[kind], row.floor[kind]) >= GB / 2000
    )
    return markdown_table(("kind of work", "ours", "floor", "more"), figures)


def _signed(value: float) -> str:
    return f"{value / GB:+.3f}"


def as_page(training_table: Table, inference_table: Table, command: str) -> str:
    """docs/traffic.md; ``command`` is how it was made."""
    network = training_table.network
    parts = [
        "# Bytes that a ResNet moves",
        _INTRODUCTION.format(command=command),
        f"## {_capital(training_table.title)}",
        _table(training_table),
        f"Ours: {verdict(training_table)}.",
        "### Where ours differs from the floor",
        by_kind(training_table.blocks),
        _excess(training_table),
        f"## {_capital(inference_table.title)}",
        _table(inference_table),
        f"Ours: {verdict(inference_table)}.",
        _inference_remarks(inference_table),
    ]
    if network.name == "resnet50" and network.stem.h == 224:
        parts += [
            "## The formulas against the published floors",
            _published(training_table.dtype, inference_table.dtype),
        ]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
Made by `{command}`; a test fails where this page and the command disagree.

The unit is GB (1e9 bytes) between memory and chip. Each tensor that a kernel touches counts once for each launch;
if the kernel uses only a part of the tensor, that part counts. A second read in one launch is expected to hit the
L2 cache; a second launch shares nothing. The columns are counted as follows:

- **eager**: the `aten` calls of torchvision's blocks under AMP, from their arguments. A table gives the operations that
  need two passes (`benchmarks/traffic/torch_ops.py`).
- **torch.compile**: a model of Inductor's passes around cuDNN's convolutions (`compiled.py`), not a trace. Inductor's
  own schedule for a row of bottlenecks moves a little more: 20 passes over the widest tensor, the model has 16.
- **ours**: the launches of the fused operators, recorded on meta tensors and counted from the kernels' own arguments,
  plus the operations of PyTorch around them (`ours.py`, `footprint.py`).
- **floor**: the least that must move, by the formula `fusedA` for training and `pool` for inference (`floors.py`)."""


def _capital(text: str) -> str:
    return text.replace("resnet", "ResNet-", 1)


def _table(table: Table) -> str:
    return markdown_table(("GB", *HEADER[1:]), (cells(row) for row in (*table.rows, table.total)))


def _excess(table: Table) -> str:
    """The differences, counted and not estimated."""
    over, floor = table.total.ours.total() - table.total.floor.total(), table.total.floor.total()
    lines = [f"The whole network's {_share(over, floor)}, by cause:", ""]
    lines += [
        paragraph(f"**{item.name}, {_share(item.bytes, floor)}**: {item.reason}", "- ")
        for item in differences(table)
        if abs(item.bytes) >= GB / 2000
    ]
    apart = Bytes()
    for stage in table.network.stages:
        apart += sum(ours.stage_training(stage, table.batch, table.dtype), Bytes())
    more = apart.total() - table.blocks.ours.total()
    lines += ["", paragraph(_APART.format(more=_share(more, floor)))]
    return "\n".join(lines)


_APART = """All blocks are one operator here, as in a `FusedResNet`: the epilogue that writes the gradient of a
block's input also applies the ReLU's mask and takes the sums for the block before. If each stage is a separate operator
(`fuse(model)`, or `linked = False`), its last block starts with a separate pass, `entry`, which costs {more} in all."""


def paragraph(text: str, indent: str = "") -> str:
    """``text`` in lines of a readable length; ``indent`` opens the first one."""
    return textwrap.fill(
        " ".join(text.split()),
        118,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_on_hyphens=False,
    )


def _share(value: float, whole: int) -> str:
    return f"{value / GB:+.2f} GB ({value / whole:+.1%})"


def _inference_remarks(table: Table) -> str:
    blocks, total = table.blocks.ours, table.total.floor.total()
    chain = total - floors.chain_saves(table.network, table.batch, table.dtype)
    return paragraph(
        f"""The floor has one kernel for each convolution with its whole epilogue. Ours is below the floor where chain
        kernels run a bottleneck's 3x3, its last 1x1 and the next block's first 1x1 in one launch: they move
        {blocks["chain"] / GB:.3f} GB of the blocks' {blocks.total() / GB:.3f}. The part of such a launch that
        belongs to the next block counts there. With chains at every width up to {floors.CHAIN_WIDTH}, across stages
        too, the floor would be {chain / GB:.3f} GB. Weights are folded once, before the pass. The stem's launch
        reads an image that `pack` has written with four channels."""
    )


def _published(training_dtype: torch.dtype, inference_dtype: torch.dtype) -> str:
    network, rows = resnet("resnet50"), []
    for n, (eager, compiled, floor, pool, chain) in PUBLISHED.items():
        step, run = training(network, n, training_dtype).total, inference(network, n, inference_dtype).total
        pool_floor = run.floor.total()
        chain_floor = pool_floor - floors.chain_saves(network, n, inference_dtype)
        figures = (
            (step.totals[0] / GB, eager),
            (step.totals[1] / GB, compiled),
            (step.totals[3] / GB, floor),
            (pool_floor / 1e6, pool),
            (chain_floor / 1e6, chain),
        )
        compared = (f"{here:,.{1 if known < 1000 else 0}f} / {known:,}" for here, known in figures)
        rows.append((str(n), *compared, f"{step.ratio:.3f}", f"{run.ratio:.3f}"))
    header = (
        "batch", "eager GB", "torch.compile GB", "fusedA GB", "pool MB", "chain MB", "ours / fusedA", "ours / pool",
    )  # fmt: skip
    text = """ResNet-50 at other batch sizes: the first figure is from the formulas above, the second from the analysis
        that set this project's goals. The floors agree to the last digit. Eager and torch.compile are up to 1 % above
        the analysis, in part because gradients of weights are written in 16 bits, read, and written in fp32. Casts of
        weights and split-K workspaces do not shrink with the batch, so they matter more in small batches."""
    return f"{paragraph(text)}\n\n{markdown_table(header, rows)}"
