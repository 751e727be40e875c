"""``python -m benchmarks.exports``: see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks.exports.measure import COMPARED, TARGET, measured
from benchmarks.exports.page import PAGE, TABLE, Row, Table, differences, page
from rescompile.errors import RescompileError
from rescompile.files import atomic_write
from rescompile.optional import extras_for, require

PACKAGES = ("torch", "torchvision", "timm", "openvino", "onnxruntime", "tensorrt_rtx")


def main(words: Sequence[str] | None = None) -> int:
    """Build and compare; 1 if a network fails, or is not what the stored table says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("--networks", default="*", help="such as 'timm:*,resnet18'")
    parser.add_argument("--write", action="store_true", help="store the results, and write the page")
    asked = parser.parse_args(words)
    try:
        with extras_for("benchmarks.exports"):
            from benchmarks.exports.networks import EXPORTS
        require("tensorrt_rtx", "benchmarks.exports")
    except RescompileError as error:
        parser.exit(1, f"error: {error}\n")
    patterns = asked.networks.split(",")
    stored = _stored()
    rows = dict(stored)
    faults: list[str] = []
    chosen = [name for name in EXPORTS if any(fnmatch(name, pattern) for pattern in patterns)]
    if not chosen:
        parser.error(f"--networks {asked.networks} is none of {', '.join(EXPORTS)}")
    for name in chosen:
        try:
            row = _row(name)
        except RescompileError as error:
            faults.append(f"{name}: {error}")
        else:
            rows[name] = row
            faults += [f"{name}: {fault}"] if (fault := row.fault()) else []
            faults += differences(stored[name], row) if name in stored and not asked.write else []
        print(faults[-1] if faults and faults[-1].startswith(f"{name}: ") else f"{name}: right", flush=True)
        if asked.write:
            _write(rows, list(EXPORTS))
    print(f"{len(faults)} faults", *faults, sep="\n")
    return 1 if faults else 0


def _row(name: str) -> Row:
    from benchmarks.exports.networks import EXPORTS, made

    export = EXPORTS[name]
    with tempfile.TemporaryDirectory(prefix="rescompile-exports-") as folder:
        return measured(name, made(export), (export.channels, export.size, export.size), Path(folder))


def _stored() -> dict[str, Row]:
    if not TABLE.exists():
        return {}
    return {row.name: row for row in msgspec.json.decode(TABLE.read_bytes(), type=Table).rows}


def _write(rows: dict[str, Row], names: Sequence[str]) -> None:
    table = Table(
        versions={package: version(package) for package in PACKAGES},
        of=len(names),
        rows=tuple(rows[name] for name in names if name in rows),
    )
    atomic_write(TABLE, msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
    atomic_write(PAGE, page(table, images=COMPARED, target=TARGET).encode())


if __name__ == "__main__":
    sys.exit(main())
