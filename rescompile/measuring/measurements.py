"""Reads the result files of ``rescompile bench`` and ``rescompile profile``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from calibration.file_names import text_of
from rescompile.errors import UsageError
from rescompile.measuring import bench, profile_report
from rescompile.measuring.bench import BenchReport
from rescompile.measuring.profile_report import ProfileReport

_SUITES = "rescompile-suites-1"
"""Format of the results of the suites in ``benchmarks/``, which have their own page there."""


@dataclass
class Measurements:
    """Everything that a page is made from."""

    benches: list[BenchReport] = field(default_factory=list)
    profiles: list[ProfileReport] = field(default_factory=list)


class _Format(msgspec.Struct):
    format: str


def read_measurements(paths: Sequence[Path]) -> Measurements:
    """Read all ``paths``, each a result of ``bench`` or of ``profile``.

    Raises:
        UsageError: a file cannot be read, or is neither.
    """
    found = Measurements()
    for path in paths:
        text = _bytes(path)
        try:
            kind = msgspec.json.decode(text, type=_Format).format
            if kind == bench.FORMAT:
                found.benches.append(msgspec.json.decode(text, type=BenchReport))
            elif kind == profile_report.FORMAT:
                found.profiles.append(msgspec.json.decode(text, type=ProfileReport))
            elif kind == _SUITES:
                raise UsageError(
                    f"{text_of(path)} is a result of the suites in benchmarks/; in a checkout of rescompile, show it "
                    "with python -m benchmarks.suite_page"
                )
            else:
                raise _refusal(path, f"its format is '{kind}'")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _refusal(path, str(error)) from None
    return found


def read_bench(path: Path) -> BenchReport:
    """A report that ``rescompile bench --output`` or ``--json`` wrote.

    Raises:
        UsageError: the file cannot be read, or is not such a report.
    """
    try:
        return msgspec.json.decode(_bytes(path), type=BenchReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{text_of(path)} is not a result of rescompile bench ({error}); make one with "
            "rescompile bench DIR --output FILE.json"
        ) from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{text_of(path)} cannot be read ({error.strerror}); check the path") from None


def _refusal(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{text_of(path)} is not a result of bench or profile ({reason}); pass files that rescompile bench --output "
        "or rescompile profile --output wrote"
    )
