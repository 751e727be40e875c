"""Results of ``rescompile bench``, ``rescompile profile`` and the suites, read from their files into one collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from calibration.names import text_of
from rescompile.errors import UsageError
from rescompile.measuring import bench as benches
from rescompile.measuring import profile as profiles
from rescompile.measuring import suite_results
from rescompile.measuring.bench import BenchReport
from rescompile.measuring.origin import Origin
from rescompile.measuring.profile import ProfileReport
from rescompile.measuring.suite_results import Results


@dataclass
class Measurements:
    """Everything that a page is made from."""

    benches: list[BenchReport] = field(default_factory=list)
    profiles: list[ProfileReport] = field(default_factory=list)
    suites: list[Results] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """One for each file, in their order by kind."""
        benches = [found.origin for found in self.benches]
        profiles = [found.origin for found in self.profiles]
        return (*benches, *profiles, *(found.origin for found in self.suites))


class _Format(msgspec.Struct):
    format: str


def read_measurements(paths: Sequence[Path]) -> Measurements:
    """Read all ``paths``, whatever of the three each one is.

    Raises:
        UsageError: a file cannot be read, or is none of them.
    """
    found = Measurements()
    for path in paths:
        text = _bytes(path)
        try:
            kind = msgspec.json.decode(text, type=_Format).format
            if kind == benches.FORMAT:
                found.benches.append(msgspec.json.decode(text, type=BenchReport))
            elif kind == profiles.FORMAT:
                found.profiles.append(msgspec.json.decode(text, type=ProfileReport))
            elif kind == suite_results.FORMAT:
                found.suites.append(msgspec.json.decode(text, type=Results))
            else:
                raise _refusal(path, f"its format is '{kind}'")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _refusal(path, str(error)) from None
        found.files.append(text_of(path))
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{text_of(path)} cannot be read ({error.strerror}); check the path") from None


def _refusal(path: Path, reason: str) -> UsageError:
    return UsageError(
        f"{text_of(path)} is no result that a page can show ({reason}); pass files of rescompile bench --output, "
        "rescompile profile --output, or of the suites in benchmarks/"
    )
