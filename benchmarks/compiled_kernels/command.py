"""``python -m benchmarks.compiled_kernels``; exit code 0: all kernels good, 1: one is wrong, 2: wrong usage."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from benchmarks.compiled_kernels.catalogue import catalogue
from benchmarks.compiled_kernels.compiled import compile_in_processes
from benchmarks.compiled_kernels.report import Row, as_markdown, as_text, ordered, summary
from benchmarks.compiled_kernels.units import CONFIGS, Unit, units_of
from fused_kernels.compiling.pool import default_jobs
from fused_kernels.errors import FusedKernelError
from fused_kernels.gpus import TARGETS, Target
from fused_kernels.launch import interpreted
from fused_kernels.tiles import Tile
from rescompile.files import atomic_write

_CONFIGS_HELP = (
    "few: one call of each kernel, functor and dtype, with the tile that runs without a tuning table;"
    " default: every kernel, functor and dtype on one shape, with that tile;"
    " sample: default, and the few calls with every candidate of the tuner;"
    " kernels: default, with every candidate too; all: every candidate on every shape of the catalogue"
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    asked = parser.parse_args(given)
    if interpreted():
        parser.error("TRITON_INTERPRET is on, and the interpreter compiles nothing: unset it")
    if asked.jobs < 1:
        parser.error(f"--jobs {asked.jobs}: at least one process is needed")
    try:
        code = _run(asked, shlex.join(["python", "-m", "benchmarks.compiled_kernels", *given]))
    except FusedKernelError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    raise SystemExit(code)


def _run(asked: argparse.Namespace, command: str) -> int:
    import triton

    started = time.perf_counter()
    targets = [TARGETS[name] for name in dict.fromkeys(asked.target or ["sm_90"])]
    patterns = asked.kernels or ["*"]
    units = {
        target: units_of(catalogue(), target, asked.configs, patterns, asked.dtype, asked.tile)
        for target in targets
    }
    if not any(units.values()):
        print(f"error: no kernel or operation of such a dtype matches {', '.join(patterns)}", file=sys.stderr)
        return 2
    rows = ordered(_compiled(units, asked.jobs))
    print(as_text(rows))
    for target in targets:
        print(summary([row for row in rows if row.target == target]))
    seconds = time.perf_counter() - started
    print(
        f"{len(rows)} compilations in {seconds:.0f} s with Triton {triton.__version__}, {asked.jobs} at a time"
    )
    passed = not any(row.problems for row in rows)
    if asked.json is not None:
        body = {
            "triton": triton.__version__,
            "configs": asked.configs,
            "passed": passed,
            "seconds": round(seconds, 1),
            "kernels": [row.to_json() for row in rows],
        }
        _write(asked.json, json.dumps(body, indent=1) + "\n")
    if asked.output is not None:
        _write(asked.output, as_markdown(rows, triton.__version__, command))
    return 0 if passed else 1


def _compiled(units: dict[Target, list[Unit]], jobs: int) -> Iterator[Row]:
    """One row per unit, in the order in which they finish; shows progress on a terminal."""
    wanted = {(unit.variant, target.name): (unit, target) for target, mine in units.items() for unit in mine}
    work = [(unit.variant, target) for unit, target in wanted.values()]
    with _progress(len(work)) as advance:
        for compiled in compile_in_processes(work, jobs):
            unit, target = wanted[compiled.variant, compiled.target]
            advance()
            yield Row(unit, target, compiled)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())


def _tile(words: str) -> Tile:
    """The tile of ``--tile``."""
    try:
        return Tile.from_json(json.loads(words))
    except FusedKernelError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{words!r} is no JSON object with the sizes of a tile") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled_kernels",
        description="Compile the fused kernels without a GPU and report registers, spills, shared memory and"
        " tensor-core instructions. Fails where a kernel does not compile, needs more shared memory than there is,"
        " multiplies without tensor cores or, on sm_90, spills more than 16 bytes of a thread's registers.",
    )
    parser.add_argument(
        "--target",
        action="append",
        choices=list(TARGETS),
        help="may be given several times; sm_90 if none is",
    )
    parser.add_argument("--configs", choices=CONFIGS, default="kernels", help=_CONFIGS_HELP)
    parser.add_argument(
        "--kernels",
        action="append",
        metavar="PATTERN",
        help="only kernels or operations like this, as 'conv_*' or '*3x3*'; may be given several times",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        default=[],
        choices=["bfloat16", "float16", "float32", "int8"],
        help="of the activations, may be given several times; all if none is (fp32 also as TF32)",
    )
    parser.add_argument(
        "--tile",
        type=_tile,
        metavar="JSON",
        help="this tile alone, in place of those of --configs, as"
        """ '{"m": 128, "n": 128, "k": 64, "warps": 8, "stages": 2, "registers": 128}'""",
    )
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="processes; default: one a core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything here")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table here, as Markdown")
    return parser
