"""Results of one run of the suites, as a JSON document; the rows of one case were timed against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.result_files import write_result
from rescompile.measuring.origin import Origin
from rescompile.measuring.roofline import Roofline
from rescompile.measuring.timing import Timing
from rescompile.report import StageRecord

FORMAT: Literal["rescompile-suites-1"] = "rescompile-suites-1"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One contender of one case: its timing, or in ``skipped`` the reason why it has none."""

    suite: str
    case: str
    contender: str
    ours: bool
    batch: int = 1
    """Images of one call; contenders of a case may differ, so ratios are by image."""
    weights: str = ""
    timing: Timing | None = None
    images_per_second: float | None = None
    relative_rms: float | None = None
    """Error of its logits against fp32's, measured before it was timed."""
    allowed: float | None = None
    floor_ms: float | None = None
    """Shortest possible time of one call at the machine's measured rates."""
    share_of_roofline: float | None = None
    """floor_ms over the median; 1 is the machine's limit."""
    best_peer: str | None = None
    ratio_to_best_peer: float | None = None
    """The best peer's time per image over this one's: above 1, this one is faster."""
    peak_rss_bytes: int | None = None
    stages: tuple[StageRecord, ...] = ()
    skipped: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def ms_per_image(self) -> float | None:
        """Median of one call over its images."""
        return None if self.timing is None else self.timing.p50 / self.batch


class TargetResult(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio that the project targets; ``measured`` and ``passed`` are None where one of the two has no time."""

    name: str
    case: str
    ours: str
    peer: str
    asked: float
    measured: float | None
    passed: bool | None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The document."""

    format: Literal["rescompile-suites-1"] = FORMAT
    command: str
    seconds: float
    origin: Origin
    roofline: Roofline | None
    rows: tuple[Row, ...]
    bars: tuple[TargetResult, ...]
    notes: tuple[str, ...]

    def write(self, path: Path) -> None:
        """Write the document whole or not at all."""
        write_result(self, path)


def read_results(path: Path) -> Results:
    """Raises OSError or msgspec.DecodeError."""
    return msgspec.json.decode(path.read_bytes(), type=Results)
