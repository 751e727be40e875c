"""Products of ResNet-50's training step, compiled for sm_90: ``python -m benchmarks.compiled_kernels.training FILE``.

It writes one JSON row for each distinct product. With ``--before`` and ``--page`` it also writes a page that holds an
earlier file against it: ``docs/kernels-training.md``.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.compiled_kernels.report import markdown
from benchmarks.compiled_kernels.sass import listing_of, opcodes, registers_of
from benchmarks.gpu.devices import DEVICES
from benchmarks.gpu.launches import network_launches
from benchmarks.gpu.machine_code import KINDS, instructions, kinds_of_loop
from benchmarks.gpu.model import Compiled
from benchmarks.gpu.networks import FULL
from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.pool import CompilePool, default_jobs
from fused_kernels.compiling.variant import Variant, variant_of
from fused_kernels.launch import Functor, Launch
from rescompile.files import atomic_write
from rescompile.measuring.git_commit import commit_of

BATCH = 256
CAPABILITY = 90
PRODUCTS = {"conv.conv_kernel", "wgrad.wgrad_kernel"}


@dataclass(frozen=True)
class Product:
    """One distinct product and what its machine code shows."""

    name: str
    shape: str
    tile: str
    launches: int
    registers: int
    programs: int
    """Programs that fit on a processor together."""
    spills: int
    """Instructions that store registers to memory or load them back."""
    shuffles: int
    after: int
    """Instructions after the last one of the tensor cores."""
    loop: int
    """Instructions of the longest innermost loop, 0 if there is none."""
    loop_kinds: dict[str, int] = field(default_factory=dict)
    """How many of them do what, by ``KINDS``."""


def products(jobs: int) -> list[Product]:
    """Every distinct product of a training step, bf16."""
    launches = network_launches(FULL, BATCH, torch.bfloat16, training=True)
    found: dict[Variant, list[Launch]] = {}
    for launch in launches:
        if launch.kernel in PRODUCTS:
            found.setdefault(variant_of(launch), []).append(launch)
    with CompilePool(jobs) as pool:
        futures = {variant: pool.submit(variant, CAPABILITY) for variant in found}
        made = [_product(found[variant], future.result()) for variant, future in futures.items()]
    return sorted(made, key=lambda product: (product.name, product.shape))


def _product(launches: Sequence[Launch], code: Code) -> Product:
    if code.error:
        raise RuntimeError(f"{launches[0].kernel} does not compile: {code.error}")
    listing = listing_of(code.cubin, CAPABILITY)
    found = opcodes(listing)
    last = max(index for index, name in enumerate(found) if name == "HGMMA")
    counts = Counter(found)
    registers = registers_of(code.cubin)
    compiled = Compiled(registers, code.shared_bytes, code.threads, instructions(listing))
    return Product(
        *_names(launches[0]),
        launches=len(launches),
        registers=registers,
        programs=compiled.resident(DEVICES["h100"]),
        spills=counts["STL"] + counts["LDL"],
        shuffles=counts["SHFL"],
        after=len(found) - 1 - last,
        loop=compiled.code.loop,
        loop_kinds=kinds_of_loop(listing),
    )


def _names(launch: Launch) -> tuple[str, str, str]:
    """Kernel with its functors, shape, and tile."""
    a = launch.arguments
    parts = [launch.kernel.split(".")[1].removesuffix("_kernel")]
    parts += [
        functor.name.split(".")[1]
        for key in ("PROLOGUE", "EPILOGUE")
        if isinstance(functor := a.get(key), Functor)
    ]
    if a.get("norm_args") is not None:
        parts.append("dy")
    if launch.kernel == "conv.conv_kernel":
        shape = f"{a['TAPS_H']}x{a['TAPS_W']} {a['DEPTH']}→{a['COLS']}"
        stride = max(a["IN_STRIDE"], a["OUT_STRIDE"])
    else:
        shape, stride = f"{a['R']}x{a['S']} {a['C']}→{a['K']}", a["STRIDE"]
    return " ".join(parts), shape + (f" /{stride}" if stride > 1 else ""), launch.tile.name


def as_page(before: dict[str, Any], after: dict[str, Any]) -> str:
    """One line for each kind of product that there is now, its worst figures and those of before."""
    rows = []
    old, new = _kinds(before["products"]), _kinds(after["products"])
    for name in sorted(new):
        pairs = [(_worst(old[name], key) if name in old else "-", _worst(new[name], key)) for key in _COLUMNS]
        rows.append([name, str(_sum(new[name])), *(f"{a} → {b}" for a, b in pairs)])
    header = ("product", "launches", *_COLUMNS.values())
    alone = [_sum(p for p in body["products"] if p["programs"] == 1) for body in (before, after)]
    totals = [_sum(body["products"]) for body in (before, after)]
    about = (
        f"All products of a training step of ResNet-50 (batch {BATCH}, bf16, default tiles), compiled for "
        f"sm_90 by Triton {after['triton']} without a GPU (`python -m benchmarks.compiled_kernels.training`). "
        f"Each cell is the worst of its kind, first at commit {before['commit']}, then at {after['commit']}. "
        "In between, epilogues began to store their tile and read it back before they reduce it, tiles to "
        "limit registers, and wgrad to carry pixel coordinates from block to block and, of a 1x1, to make dy on its "
        "way; drelu began to read its tile back in halves, as block_gradient does where it sums up for a projection "
        "too, wgrad to mask nothing where blocks are whole, and the taps of a convolution became one loop where it has "
        "several blocks of channels. A dash is a kind that there was not. Programs are those that a processor holds "
        "together; spills, shuffles and the columns behind them count instructions. "
        f"{alone[0]} of {totals[0]} launches had a processor to themselves; {alone[1]} of {totals[1]} have now."
    )
    title, table = "# Kernels of a training step, compiled", markdown(header, set(header[1:]), rows)
    return f"{title}\n\n{textwrap.fill(about, 120)}\n\n{table}\n\n{_loops(after['products'])}\n"


def _loops(found: Iterable[dict[str, Any]]) -> str:
    """What the instructions of the longest loop do, for each kind of product and tile; the longest of its kind."""
    longest: dict[tuple[str, str], dict[str, Any]] = {}
    for product in found:
        key = f"{product['name']} {product['shape'].split(' ')[0]}", product["tile"]
        longest[key] = max(longest.get(key, product), product, key=lambda one: int(one["loop"]))
    rows = [
        [*key, str(product["loop"]), *(str(product["loop_kinds"].get(kind, 0)) for kind in KINDS)]
        for key, product in sorted(longest.items())
        if product["loop"]
    ]
    header = ("product", "tile", "a loop", *KINDS)
    about = (
        "What the instructions of the longest innermost loop do, by their names; one round of it multiplies one block "
        "of the reduction."
    )
    return f"## Loops\n\n{textwrap.fill(about, 120)}\n\n{markdown(header, set(header[2:]), rows)}"


_COLUMNS = {
    "registers": "registers",
    "programs": "programs",
    "spills": "spills",
    "shuffles": "shuffles",
    "after": "after the last HGMMA",
    "loop": "a loop",
}


def _kinds(found: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for product in found:
        window = product["shape"].split(" ")[0]
        kinds.setdefault(f"{product['name']} {window}", []).append(product)
    return kinds


def _worst(found: Iterable[dict[str, Any]], key: str) -> int:
    figures = [product[key] for product in found]
    return int(min(figures) if key == "programs" else max(figures))


def _sum(found: Iterable[dict[str, Any]]) -> int:
    return sum(int(product["launches"]) for product in found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile and write."""
    import triton

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled_kernels.training", description=__doc__
    )
    parser.add_argument("output", type=Path, metavar="FILE", help="where to write the figures, as JSON")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="processes; default: one a core")
    parser.add_argument("--before", type=Path, metavar="FILE", help="an earlier file, for --page")
    parser.add_argument(
        "--page", type=Path, metavar="PAGE", help="also write this page, as Markdown; needs --before"
    )
    asked = parser.parse_args(arguments)
    if (asked.page is None) != (asked.before is None):
        parser.error("--page and --before belong together; pass both or neither")
    try:
        before = json.loads(asked.before.read_text("utf-8")) if asked.before else {}
    except (OSError, ValueError) as error:
        parser.error(f"--before {asked.before} cannot be read ({error}); pass a file that this command wrote")
    made = [asdict(product) for product in products(asked.jobs)]
    body = {"triton": triton.__version__, "commit": commit_of(), "products": made}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(asked.output, (json.dumps(body, indent=1) + "\n").encode())
    if asked.page is not None:
        atomic_write(asked.page, as_page(before, body).encode())


if __name__ == "__main__":
    main()
