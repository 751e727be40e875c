"""The terminal: lines that grep well, and no escape codes where there is no terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from rescompile.presenting.terminal.report import LINE_SECONDS, TerminalProgress, print_summary
from rescompile.progress import StageClock
from rescompile.report import Check, FusedAdds, LintResult, StageRecord
from tests.reports import frontier, report


def console(*, terminal: bool = False, width: int = 60) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    system = "standard" if terminal else None
    made = Console(file=stream, force_terminal=terminal, width=width, color_system=system, highlight=False)
    return made, stream


def printed(*, terminal: bool = False, **changes) -> str:
    target, stream = console(terminal=terminal)
    print_summary(report(**changes), target)
    return stream.getvalue()


def test_the_first_line_is_what_was_built_and_the_verdict() -> None:
    assert printed().splitlines()[0] == "resnet50 int8 openvino: verified"
    assert printed(passed=False).splitlines()[0] == "resnet50 int8 openvino: failed"
    assert printed(engine_executed=False).splitlines()[0].endswith(": built, not executed here")


def test_checks_are_aligned_lines_of_asked_and_measured() -> None:
    checks = (
        Check("agreement", "at least 96 %", "91.5 %", passed=False),
        Check("relative RMS", "at most 0.04", "0.031", passed=True),
    )
    lines = [line for line in printed(passed=False, checks=checks).splitlines() if line.startswith("check")]
    assert lines == [
        "check  agreement     asked at least 96 %  measured 91.5 %  failed",
        "check  relative RMS  asked at most 0.04   measured 0.031   passed",
    ]


def test_every_fact_is_one_aligned_line() -> None:
    lines = printed(lint=LintResult(("r",), ("layer1.0: fix",)), passed=False).splitlines()
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in lines[4:])
    assert facts["fused adds"] == "16 of 16 (seen in the graph)"
    assert facts["broken rule"] == "layer1.0: fix"
    assert facts["stage verify"] == "2 min 05 s, peak 1.25 GB"
    assert facts["note"] == "the built-in photographs were used"
    assert facts["engine directory"] == "out/resnet50-int8-openvino"
    assert facts["report of the build"] == "out/resnet50-int8-openvino/report.html"
    assert len({line.index(value) for line, value in zip(lines[4:], facts.values(), strict=True)}) == 1


def test_blocks_in_fp16_and_every_choice_that_was_tried_are_lines() -> None:
    text = printed(fp16_blocks=("stem", "layer3.0"), reformats=3, frontier=frontier(3))
    lines = [re.split(r"  +", line, maxsplit=1) for line in text.splitlines()[4:]]
    assert ["blocks in FP16", "stem, layer3.0"] in lines
    assert ["reformats", "3"] in lines
    assert [value for name, value in lines if name == "tried"] == [
        "0 blocks in INT8, reformats 0, agreement 100 %, drop 0.5 points, relative RMS 0, limits met, FP16: layer3.0",
        "4 blocks in INT8, reformats 3, agreement 99.333 %, drop no labels, relative RMS 0.01, limits met, "
        "FP16: layer3.0",
        "8 blocks in INT8, reformats 1, agreement 98.667 %, drop no labels, relative RMS 0.02, limits missed, "
        "FP16: none",
    ]
    assert "blocks in FP16" not in printed()
    assert "tried" not in printed()


def test_fused_adds_say_where_they_were_counted() -> None:
    assert "33 of 33 (seen in the engine)" in printed(fused=FusedAdds(33, 33, "engine"))


def test_long_lines_are_not_broken() -> None:
    path = "/very/long" * 30
    assert any(line.endswith(path) for line in printed(engine_directory=path).splitlines())


def test_colour_codes_appear_on_terminals_only() -> None:
    assert "\x1b[" not in printed()
    assert "\x1b[" in printed(terminal=True)


def test_text_from_outside_is_neither_markup_nor_terminal_code() -> None:
    evil = "[bold]x[/bold] :smile: \x1b[31m"
    checks = (Check(evil, evil, evil, passed=True),)
    text = printed(model=evil, notes=(evil,), checks=checks)
    assert text.count("[bold]x[/bold] :smile: \\x1b[31m") == 6
    assert "\x1b" not in text


def test_a_report_without_checks_and_stages_is_printed() -> None:
    text = printed(checks=(), stages=(), notes=(), images=0)
    assert "built, not judged" in text
    assert "check " not in text


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    target, stream = console()
    clock = StageClock(TerminalProgress(target))
    with clock.stage("calibrate"):
        pass
    with pytest.raises(ZeroDivisionError), clock.stage("build"):
        _ = 1 / 0
    lines = stream.getvalue().splitlines()
    assert lines[0] == "calibrate: started"
    assert re.fullmatch(r"calibrate: \d\.\d\d s, peak .*B", lines[1])
    assert lines[2:] == ["build: started", "build: failed"]


def test_a_long_stage_says_how_far_it_is_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    target, stream = console()
    progress = TerminalProgress(target)
    progress.stage_started("verify")
    for now, done, total in (  # noqa: B007 - the clock reads it
        (LINE_SECONDS - 1, 1, 9),
        (LINE_SECONDS, 2, 9),
        (LINE_SECONDS + 1, 3, 9),
        (9 * LINE_SECONDS, 4, 0),
    ):
        progress.advanced(done, total)
    assert stream.getvalue().splitlines() == ["verify: started", "verify: 2 of 9, about 70 s left"]


def test_later_stages_are_estimated_by_the_pace_of_the_running_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    target, stream = console()
    progress = TerminalProgress(target)
    progress.planned({"calibrate": 40, "verify": 300})
    progress.stage_started("load")
    now = LINE_SECONDS
    progress.advanced(1, 2)
    progress.stage_started("calibrate")
    now = 2 * LINE_SECONDS
    progress.advanced(20, 40)
    progress.stage_started("verify")
    now = 3 * LINE_SECONDS
    progress.advanced(100, 300)
    assert stream.getvalue().splitlines()[1::2] == [
        "load: 1 of 2, about 20 s left",
        "calibrate: 20 of 40, about 20 s left, then at most about 5 min of verify",
        "verify: 100 of 300, about 40 s left",
    ]


def test_a_bar_without_an_end_does_not_say_what_is_left() -> None:
    target, stream = console(terminal=True)
    with TerminalProgress(target) as progress:
        progress.stage_started("load")
        progress.advanced(3, 0)
        progress.stage_finished(StageRecord("load", 1.5, 2_000_000_000))
    assert "0:00:00" in stream.getvalue()
    assert "left" not in stream.getvalue()


def test_progress_on_a_terminal_is_a_bar_that_gives_way_to_a_line() -> None:
    target, stream = console(terminal=True)
    with TerminalProgress(target) as progress:
        progress.stage_started("calibrate")
        progress.advanced(3, 0)
        progress.advanced(3, 7)
        progress.stage_finished(StageRecord("calibrate", 1.5, 2_000_000_000))
    text = stream.getvalue()
    assert "3/7" in text
    assert text.rstrip("\n").endswith("calibrate: 1.50 s, peak 2.00 GB")


def test_leaving_the_block_ends_the_bar() -> None:
    target, stream = console(terminal=True)
    with TerminalProgress(target) as progress:
        progress.stage_started("build")
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert stream.getvalue().count(hide) == stream.getvalue().count(show) == 1


def test_advancing_without_a_stage_is_harmless() -> None:
    target, stream = console(terminal=True)
    TerminalProgress(target).advanced(1, 2)
    assert stream.getvalue() == ""


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with StageClock(TerminalProgress()).stage("load"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert "load" in err
