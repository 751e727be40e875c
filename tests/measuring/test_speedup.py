"""The race of an engine with its fp32 network."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from rescompile.engine_files import EngineFiles
from rescompile.errors import EngineError
from rescompile.manifest import REFERENCE
from rescompile.measuring.speedup import measure_speed
from rescompile.report import Speed, read_report
from rescompile.runtime.loading import load


def test_both_networks_are_timed_and_their_sizes_told(small_engines: dict[str, Path]) -> None:
    folder = small_engines["int8"]
    reference = (folder / REFERENCE).read_bytes()
    with load(folder) as engine:
        found = measure_speed(engine, EngineFiles(folder), folder / REFERENCE)
        in_memory = measure_speed(engine, EngineFiles(folder), reference)
    assert found is not None
    assert in_memory is not None
    assert in_memory.fp32_bytes == found.fp32_bytes
    assert (found.batch, found.library, found.fp32_bytes) == (1, "OpenVINO", len(reference))
    assert found.engine_bytes == sum((folder / name).stat().st_size for name in ("model.xml", "model.bin"))
    assert found.engine_interval[0] <= found.engine_ms <= found.engine_interval[1]
    assert found.ratio == pytest.approx(found.fp32_ms / found.engine_ms)
    assert found.ratio > 0


def test_a_wrong_answer_has_no_speed(small_engines: dict[str, Path]) -> None:
    folder = small_engines["int8"]
    with load(folder) as engine:

        class Wrong:
            manifest = engine.manifest

            def __call__(self, images):
                return -engine(images)

        with pytest.raises(EngineError, match="gives wrong answers at batch 1"):
            measure_speed(Wrong(), EngineFiles(folder), (folder / REFERENCE).read_bytes())


def test_libraries_that_run_no_fp32_graph_are_not_raced(small_engines: dict[str, Path]) -> None:
    class OnGpu:
        manifest = msgspec.structs.replace(
            load(small_engines["int8"], verify=False).manifest, backend="triton"
        )

    assert measure_speed(OnGpu(), EngineFiles(small_engines["int8"]), b"") is None


def test_a_build_reports_its_speed_its_date_and_its_options(small_engines: dict[str, Path]) -> None:
    report = read_report(small_engines["int8"])
    assert isinstance(report.speed, Speed)
    assert report.date is not None
    assert report.date.endswith("+00:00")
    assert report.options["effort"] == "fast"
    assert report.options["rounding"] in ("nearest", "learned")
    assert report.options["batch"] == "1:1:4"
    assert "effort" not in read_report(small_engines["fp32"]).options
