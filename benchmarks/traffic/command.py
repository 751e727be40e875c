"""``python -m benchmarks.traffic``: 0 shown, 1 the network or dtype cannot be counted, 2 usage."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.traffic.pages import BAR, HEADER, as_page, as_text, cells, verdict
from benchmarks.traffic.shapes import DEPTHS, resnet
from benchmarks.traffic.tables import Table, inference, training
from fused_kernels.errors import FusedKernelError
from rescompile.files import atomic_write

DTYPES = ("bfloat16", "float16", "float32")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    asked = parser.parse_args(given)
    if asked.batch < 1:
        parser.error(f"--batch {asked.batch}: at least one image is needed")
    if asked.markdown is not None and asked.only is not None:
        parser.error("--markdown writes both passes: leave out --training and --inference")
    try:
        _run(asked, shlex.join(["python", "-m", "benchmarks.traffic", *given]))
    except FusedKernelError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    raise SystemExit(0)


def _run(asked: argparse.Namespace, command: str) -> None:
    network, dtype = resnet(asked.model, asked.size), getattr(torch, asked.dtype)
    passes = {"training": training, "inference": inference}
    tables = [
        count(network, asked.batch, dtype) for name, count in passes.items() if asked.only in {None, name}
    ]
    if asked.json:
        print(json.dumps([table.to_json() for table in tables], indent=1))
    else:
        show(tables, Console(highlight=False))
    if asked.markdown is not None:
        asked.markdown.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(asked.markdown, as_page(tables[0], tables[1], command).encode())


def show(tables: Sequence[Table], console: Console) -> None:
    """Coloured tables on a terminal, aligned text elsewhere."""
    for table in tables:
        if console.is_terminal:
            console.print(_coloured(table))
            console.print(verdict(table), soft_wrap=True)
        else:
            print(as_text(table), end="\n\n")


def _coloured(table: Table) -> RichTable:
    shown = RichTable(title=f"{table.title}, GB", title_justify="left")
    for number, name in enumerate(HEADER):
        shown.add_column(name, justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*cells(row))
    shown.add_section()
    shown.add_row(*cells(table.total), style="bold green" if table.total.ratio <= BAR else "bold yellow")
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traffic",
        description="Bytes that a ResNet moves, block by block: eager, torch.compile, the fused operators (counted from"
        " their launches' arguments) and the least that must move.",
        epilog="Example: python -m benchmarks.traffic --model resnet50 --batch 256 --training",
    )
    parser.add_argument("--model", choices=list(DEPTHS), default="resnet50")
    parser.add_argument("--batch", type=int, default=256, metavar="N")
    parser.add_argument(
        "--size", type=int, default=224, metavar="PIXELS", help="height and width of an image"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of activations; weights train in fp32"
    )
    only = parser.add_mutually_exclusive_group()
    for name in ("training", "inference"):
        only.add_argument(
            f"--{name}", dest="only", action="store_const", const=name, help=f"only the {name} pass"
        )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, bytes")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also write the page docs/traffic.md here"
    )
    return parser
