"""Plots of a build's report, and what holds for every plot."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from rescompile.presenting.plots import build_report
from rescompile.report import ActivationRange, BlockError
from tests.reports import blocks, pairs, ranges

PLOTS: dict[str, Callable[[], str]] = {
    "error by block": lambda: build_report.error_by_block(blocks(18)).svg(),
    "activation ranges": lambda: build_report.activation_ranges(ranges(50)).svg(),
    "many ranges": lambda: build_report.activation_ranges(ranges(200)).svg(),
    "logits": lambda: build_report.logits(pairs(500), precision="int8", subject="engine").svg(),
    "logit errors": lambda: build_report.logit_errors(pairs(500), precision="int8").svg(),
}


def words(svg: str) -> list[str]:
    """The texts of a plot; parsing proves that the plot is well-formed."""
    return [
        "".join(node.itertext()).strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("text")
    ]


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_one_svg_element_that_names_nothing_outside(name: str) -> None:
    svg = PLOTS[name]()
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>\n")
    assert 'width="' not in svg[: svg.index(">")], "the page decides about the size"
    links = re.findall(r'(?:href="|url\()([^")]*)', svg)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("name", PLOTS)
def test_the_same_input_gives_the_same_text(name: str) -> None:
    assert PLOTS[name]() == PLOTS[name]()


def test_the_users_own_matplotlib_settings_change_nothing() -> None:
    import matplotlib

    before = PLOTS["error by block"]()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "axes.grid": True}):
        assert PLOTS["error by block"]() == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("name", PLOTS)
def test_ink_follows_the_page_and_no_background_is_painted(name: str) -> None:
    svg = PLOTS[name]()
    assert "currentColor" in svg
    assert not re.search(r"#0[147]0[258]0[369]", svg), "a stand-in colour was left"
    assert "fill: #ffffff" not in svg


@pytest.mark.parametrize("count", [1, 3, 18, 60, 61, 600])
def test_bars_work_for_any_number_of_blocks(count: int) -> None:
    svg = build_report.error_by_block(blocks(max(count, 2))[:count]).svg()
    assert "SQNR in dB" in words(svg)
    assert len(svg) < 120_000


def test_few_blocks_are_named_and_many_are_named_by_stage() -> None:
    assert {"stem", "layer1.0", "fc"} <= set(words(build_report.error_by_block(blocks(18)).svg()))
    many = set(words(build_report.error_by_block(blocks(600)).svg()))
    assert {"layer1", "layer2", "layer3", "layer4"} <= many
    assert "layer1.0" not in many


def test_the_worst_block_is_marked_with_its_figure() -> None:
    entries = [
        BlockError("layer1.0", 30.0, 1.0),
        BlockError("layer1.1", -3.25, 0.2),
        BlockError("fc", 25.0, 1.0),
    ]
    svg = build_report.error_by_block(entries).svg()
    assert "worst: layer1.1, -3.2 dB" in words(svg)
    assert "--plot-alert" in svg


def test_names_are_text_and_never_markup_or_mathematics() -> None:
    names = ["<script>alert(1)</script>", "$x^2$", "каталог\x00"]
    found = words(build_report.error_by_block([BlockError(name, 20.0, 1.0) for name in names]).svg())
    assert {"<script>alert(1)</script>", "$x^2$", "????????"} <= set(found)


@pytest.mark.parametrize("count", [1, 50, 60, 61, 1300])
def test_ranges_work_for_any_number_of_tensors(count: int) -> None:
    svg = build_report.activation_ranges(ranges(count)).svg()
    assert {"largest magnitude seen (amax)", "chosen threshold"} <= set(words(svg))
    assert len(svg) < 250_000


def test_thresholds_equal_to_amax_leave_both_visible() -> None:
    equal = build_report.activation_ranges([ActivationRange("layer1.0.conv1", 2.0, 2.0)] * 3).svg()
    ring, dot = "stroke: var(--plot-main", "fill: var(--plot-alert"
    assert ring in equal
    assert dot in equal
    assert equal.rindex(ring) < equal.rindex(dot), "the dot is painted after the ring"


@pytest.mark.parametrize("amax", [0.0, 1e-30, 1e30])
def test_ranges_of_any_magnitude_are_drawn(amax: float) -> None:
    entries = [ActivationRange("layer1.0.conv1", amax, amax), ActivationRange("layer1.0.conv2", 3.0, 2.0)]
    assert words(build_report.activation_ranges(entries).svg())


def test_dead_tensors_only_are_drawn() -> None:
    assert words(build_report.activation_ranges([ActivationRange("conv1", 0.0, 0.0)] * 2).svg())


@pytest.mark.parametrize("values", [[(0.0, 0.0)], [(1.0, 1.0)] * 3, [(-1e4, 1e4), (1e4, -1e4)]])
def test_logits_of_any_spread_are_drawn(values: list[tuple[float, float]]) -> None:
    assert "fp16 logit" in words(build_report.logits(values, precision="fp16", subject="engine").svg())
    assert "error (fp16 - fp32)" in words(build_report.logit_errors(values, precision="fp16").svg())


def test_two_thousand_logits_stay_small() -> None:
    assert len(build_report.logits(pairs(2000), precision="int8", subject="engine").svg()) < 100_000


def test_matplotlib_is_imported_by_drawing_only_and_pyplot_never() -> None:
    program = (
        "import sys; from rescompile.presenting.html import report_page;"
        "from rescompile.presenting.plots.build_report import logit_errors; assert 'matplotlib' not in sys.modules;"
        "logit_errors([(1.0, 2.0)], precision='int8').svg();"
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
