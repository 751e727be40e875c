"""``python -m benchmarks.accuracy``: see the package."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import msgspec
from rich.progress import Progress

from benchmarks.accuracy.checkpoints import Checkpoint, checkpoints
from benchmarks.accuracy.fp32_comparison import Fp32Comparison
from benchmarks.accuracy.ours import FIRST, KINDS, built, directory
from benchmarks.accuracy.page import PAGE, page
from benchmarks.accuracy.peers import PEERS, Peer, quantized
from benchmarks.accuracy.results import Accuracy, Row, read_accuracy
from benchmarks.result_files import result_path
from benchmarks.rows import RESULTS
from rescompile.files import atomic_write
from rescompile.manifest import REFERENCE, read_manifest
from rescompile.measuring.disturbance import Watch
from rescompile.measuring.origin import origin


def main(words: Sequence[str] | None = None) -> int:
    """Measure, or only write the page; the exit code."""
    asked = _parser().parse_args(words)
    if asked.page:
        return _write_page(asked.page, asked.output)
    data = os.environ.get("RESCOMPILE_DATA")
    known = checkpoints(Path(data)) if data else []
    chosen = [entry for entry in known if not asked.networks or entry.model in asked.networks.split(",")]
    if not chosen:
        print(
            "error: no checkpoint to measure: point RESCOMPILE_DATA at a folder that has some",
            file=sys.stderr,
        )
        return 1
    kinds = [kind for kind in KINDS if kind == FIRST or fnmatch(kind, asked.contenders)]
    peers = [peer for peer in PEERS if fnmatch(peer.name, asked.contenders)]
    if kinds == [FIRST] and not peers and not fnmatch(FIRST, asked.contenders):
        print(
            f"error: no contender is like '{asked.contenders}'; there are "
            f"{', '.join((*KINDS, *(peer.name for peer in PEERS)))}",
            file=sys.stderr,
        )
        return 2
    watch = Watch()
    with Progress() as bar:
        task = bar.add_task("", total=len(chosen) * (len(kinds) + len(peers)))

        def show(what: str) -> None:
            bar.update(task, description=what, advance=1)

        rows = [row for checkpoint in chosen for row in _rows(checkpoint, kinds, peers, show)]
    if asked.without_times:
        rows = [msgspec.structs.replace(row, seconds=None, peak_rss_bytes=None) for row in rows]
    made = origin()
    plain = result_path(RESULTS, made)
    path = asked.results or plain.with_name(f"accuracy-{plain.name}")
    command = "python -m benchmarks.accuracy " + shlex.join(sys.argv[1:] if words is None else words)
    notes = () if asked.without_times else tuple(watch.notes({}))  # load changes times alone
    Accuracy(command=command.strip(), origin=made, rows=tuple(rows), notes=notes).write(path)
    print(f"written to {path}")
    return _write_page([path], asked.output)


def _rows(
    checkpoint: Checkpoint, kinds: Sequence[str], peers: Sequence[Peer], show: Callable[[str], None]
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="rescompile-accuracy-") as name:
        folder = Path(name)

        @cache
        def comparison() -> Fp32Comparison:
            ours = directory(folder, FIRST)
            return Fp32Comparison(checkpoint, read_manifest(ours).preprocess, ours / REFERENCE)

        for kind in kinds:
            yield built(checkpoint, kind, folder, comparison)
            show(f"{checkpoint.model} {kind}")
        for peer in peers:
            yield quantized(peer, comparison(), folder)
            show(f"{checkpoint.model} {peer.name}")


def _write_page(files: Sequence[Path], output: Path) -> int:
    try:
        found = [(path, read_accuracy(path)) for path in files]
    except (OSError, msgspec.DecodeError) as error:
        print(f"error: no results of benchmarks.accuracy: {error}", file=sys.stderr)
        return 1
    atomic_write(output, page(found).encode())
    print(f"written to {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--networks", help="some of them, with commas between: resnet50,resnet20-cifar")
    parser.add_argument(
        "--contenders",
        default="*",
        metavar="PATTERN",
        help=f"those like this, and {FIRST}: '*Triton', 'NNCF*'",
    )
    parser.add_argument(
        "--without-times",
        action="store_true",
        help="leave out seconds and memory: for a machine with other load",
    )
    parser.add_argument("--results", type=Path, help="where the raw JSON goes")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page (docs/accuracy.md)")
    parser.add_argument(
        "--page",
        type=Path,
        nargs="+",
        help="write the page from these files, measure nothing; of a contender in several the last one counts",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
