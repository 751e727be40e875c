"""The tables as text for a terminal and as the page docs/traffic.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from fused_kernels.traffic import floors, ours
from fused_kernels.traffic.footprint import Bytes
from fused_kernels.traffic.tables import Row, Table, inference, training

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


def cells(row: Row) -> tuple[str, ...]:
    """One row of ``HEADER``, in GB."""
    return (row.name, *(f"{total / GB:.3f}" for total in row.totals), f"{row.ratio:.3f}")


def verdict(table: Table) -> str:
    """How the whole network compares, in one line."""
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

GB (1e9 bytes) between memory and chip. Each tensor that a kernel touches counts once for each launch, and of a tensor
that it walks over in part, that part: a second read inside of one launch is expected from the L2 cache, a second launch
shares nothing. How each column is counted:

- **eager**: `aten` calls of torchvision's blocks under AMP, from their arguments; two-pass operations by a table of passes
  (`fused_kernels/traffic/torch_ops.py`).
- **torch.compile**: a model of Inductor's passes around cuDNN's convolutions (`compiled.py`), not a trace. Inductor's own
  schedule for a row of bottlenecks moves a little more: 20 passes over the widest tensor where the model has 16.
- **ours**: the launches of the fused operators, recorded on meta tensors, from the kernels' own arguments, and the
  operations of PyTorch around them (`footprint.py`, `ours.py`).
- **floor**: fusedA for training, pool for inference, by formula (`floors.py`)."""


def _capital(text: str) -> str:
    return text.replace("resnet", "ResNet-", 1)


def _table(table: Table) -> str:
    return markdown_table(("GB", *HEADER[1:]), (cells(row) for row in (*table.rows, table.total)))


def _excess(table: Table) -> str:
    """What the difference is made of, each item counted and not estimated."""
    network, n, dtype = table.network, table.batch, table.dtype
    e, first = dtype.itemsize, network.blocks[0]
    inner = [block.main[0].x for block in network.blocks if block is not first]
    masks = n * sum(inner) * e - n * sum(inner) / 8
    written = n * sum(block.main[-1].y for block in network.blocks) / 8
    parities = (
        n
        * e
        * sum(
            (layer.conv.stride**2 - 1) * layer.y
            for block in network.blocks
            for layer in block.main
            if layer.conv.stride > 1
        )
    )
    blocks, stem = table.blocks, table.row("stem")
    one = Bytes()
    for part in ours.stage_training(network.blocks, n, dtype):
        one += part
    gain = blocks.ours.total() - one.total()
    over = table.total.ours.total() - table.total.floor.total()
    whole = table.total.floor.total()
    lines = [
        f"The {_signed(over)} GB ({over / whole:+.1%} of the floor), in the order of their weight:",
        "",
        f"- **Masks, {_share(masks - written, whole)}.** Where a block's ReLU let gradients pass is read from z, which lies"
        " there in 16 bits; the floor writes and reads one bit. Packing bits is the one item left for later by design.",
        f"- **Ends of stages, {_share(gain, whole)}.** A stage is one operator, so the gradient that enters it is written by"
        " one launch and read again by `entry`; inside of a stage one epilogue does both. As one operator, all blocks"
        f" would move {one.total() / GB:.3f} GB.",
        f"- **Stem, {_share(stem.ours.total() - stem.floor.total(), whole)}.** The image is repacked to four channels, and the"
        " max pool's gradient is stored before the dy pass reads it; the floor gathers it twice instead.",
        f"- **Split-K workspaces, {_share(blocks.ours['split-K workspace'], whole)}**, fp32 parts of dw that are written and"
        " summed up in a fixed order, so that results do not depend on timing. They fit the L2 cache.",
        f"- **Partial sums, {_share(blocks.ours['statistics'], whole)}**: a row for each tile instead of atomic additions,"
        " written by the epilogues and read by `finalize` and `sums`.",
        f"- **Strided dgrad, {_share(parities, whole)}.** Each parity of dx is a launch that reads dy again.",
        f"- **Casts, {_share(blocks.ours[ours.TORCH], whole)}** in the blocks: PyTorch casts fp32 weights, once in each direction.",
        "",
        "A block's own ratio says less than the total: the floor counts the sums for a block with the block behind it, and so",
        "do ours inside of a stage; `layerN.0` is below 1 in part and the last block of a stage above it, because of `entry`.",
    ]
    return "\n".join(lines)


def _share(value: float, whole: int) -> str:
    return f"{value / GB:+.2f} GB ({value / whole:+.1%})"


def _inference_remarks(table: Table) -> str:
    network, n = table.network, table.batch
    chain = table.total.floor.total() - floors.chain_saves(network, n, table.dtype)
    return (
        "The floor is one kernel for each convolution with its whole epilogue. Ours is below it where chain kernels run a"
        " bottleneck's 3x3, its last 1x1 and the next block's first 1x1 in one launch"
        f" ({table.blocks.ours['chain'] / GB:.3f} GB of the blocks' {table.blocks.ours.total() / GB:.3f}); what such a launch"
        f" computes of the next block counts in its own. Chains up to 256 channels, across stages too, would need"
        f" {chain / GB:.3f} GB. Weights are folded once, not for each pass."
    )


def _published(training_dtype: torch.dtype, inference_dtype: torch.dtype) -> str:
    from fused_kernels.traffic.shapes import resnet

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
    text = (
        "ResNet-50: this page's formulas / the analysis that set the goals. The floors agree to its last digit; eager and"
        " torch.compile are up to 1 % above it, eager because dw comes back through a cast, torch.compile because of the"
        " same casts and of kernels around the max pool.\n\n"
    )
    return text + markdown_table(header, rows)
