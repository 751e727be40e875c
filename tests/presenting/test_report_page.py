"""``report.html``: complete, self-contained, and safe against names from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rescompile.presenting.html.report_page import render
from rescompile.presenting.terms import TERMS
from rescompile.report import (
    ActivationRange,
    BlockDamage,
    BlockError,
    Check,
    FloatOperations,
    Limits,
    LintResult,
    StageRecord,
)
from tests.reports import blocks, frontier, pairs, ranges, report

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, attributes and visible text; refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data


def without_links(text: str) -> str:
    return re.sub(r"</?a\b[^>]*>", "", text)


def bare(**changes):
    """A report without plots: quick to render."""
    return report(**({"blocks": (), "ranges": (), "logits": ()} | changes))


def test_a_budget_shows_its_blocks_their_order_and_every_choice() -> None:
    mixed = {"fp16_blocks": ("layer3.0",), "reformats": 3, "frontier": frontier(3)}
    page = Page(render(bare(**mixed, damages=(BlockDamage("layer3.0", 0.3),))))
    assert "Blocks in FP16" in page.text
    assert "most sensitive: layer3.0" in page.text
    assert all(cell in page.text for cell in ("98.667 %", "missed", "no labels", "FP16 blocks"))
    assert page.tags.count("svg") == 2
    assert "Blocks in FP16" not in Page(render(bare())).text


def test_the_page_names_nothing_outside_of_itself() -> None:
    text = render(report())
    page = Page(text)
    links = [
        value for name, value in page.attributes if name in {"src", "href", "xlink:href", "srcset", "action"}
    ]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}, "only the names of XML spaces"


def test_the_page_is_the_same_for_the_same_report() -> None:
    assert render(report()) == render(report())


def test_the_largest_network_stays_below_a_megabyte() -> None:
    text = render(report(blocks=blocks(602), ranges=ranges(1300), logits=pairs(2000)))
    assert len(text.encode()) < 1_000_000


def test_the_verdict_comes_first() -> None:
    page = Page(render(bare()))
    assert page.text.index("Verified") < page.text.index("Asked and measured") < page.text.index("Stages")


@pytest.mark.parametrize(
    ("changes", "words", "tone"),
    [
        ({}, "Verified", "good"),
        ({"passed": False}, "Failed", "bad"),
        ({"engine_executed": False}, "Built, not executed here", "open"),
        ({"limits": Limits()}, "Built, not judged", "open"),
    ],
)
def test_the_headline_says_what_is_true(changes, words: str, tone: str) -> None:
    assert f'<p class="verdict {tone}">{words}</p>' in render(bare(**changes))


def test_asked_stands_beside_measured() -> None:
    checks = (Check("agreement", "at least 96 %", "91.5 %", passed=False),)
    text = render(bare(passed=False, checks=checks))
    assert "</a></th><td>at least 96 %</td><td>91.5 %</td>" in text
    assert '<td class="state bad">✗ failed</td>' in text


def test_every_part_of_the_report_is_on_the_page() -> None:
    text = Page(render(report())).text
    for part in (
        "resnet50 int8 openvino", "the built-in photographs were used", "97.333 %", "0.0371", "16 of 16",
        "2 rules checked, none broken", "skip-only residual", "2 min 05 s", "1.25 GB", "2026.4.0",
        "resnet50.pth", "c0" * 32, "200 images of photos, thresholds by mse", "d1" * 32,
        "validation: 300 images", "ab" * 32, "out/resnet50-int8-openvino", "SQNR in dB", "fp32 logit",
    ):  # fmt: skip
        assert part in text, part


def test_broken_rules_are_on_the_page() -> None:
    lint = LintResult(("positive scales",), ("layer1.0: scale 0; calibrate again",))
    text = Page(render(bare(passed=False, lint=lint))).text
    assert "layer1.0: scale 0; calibrate again" in text
    assert "1 rule checked, 1 broken" in text


def test_what_stays_in_floating_point_is_on_the_page_with_its_reason() -> None:
    lint = LintResult(("r",), (), (FloatOperations("a gate, which sees one pixel", ("layer1.0.gate1",)),))
    text = Page(render(bare(lint=lint))).text
    assert "What stays in floating point, and why" in text
    assert "a gate, which sees one pixel" in text
    assert "layer1.0.gate1" in text
    assert "What stays in floating point" not in Page(render(bare())).text


def test_plots_have_captions_that_screen_readers_read() -> None:
    text = render(report())
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', text)
    assert len(labels) == 4
    assert all(f"<figcaption>{label}</figcaption>" in without_links(text) for label in labels)


def test_figures_of_a_graph_are_not_called_the_engines() -> None:
    changes = {"engine_executed": False, "measured_on": "deployable graph (onnxruntime)"}
    text = Page(render(report(**changes))).text
    assert "could not be executed on this machine" in text
    assert "All figures come from the deployable graph (onnxruntime)." in text
    assert "top-1 of the deployable graph" in text
    assert "top-1 of the engine" not in text


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '" onload="x', "a&b", "</style></svg>", "{{ 7 * 7 }} {% x"]
)
def test_text_from_outside_stays_text(evil: str) -> None:
    text = render(
        report(
            model=evil,
            engine_directory=evil,
            image_source=evil,
            notes=(evil,),
            environment={evil: evil},
            checks=(Check(evil, evil, evil, passed=True),),
            lint=LintResult((evil,), (evil,)),
            stages=(StageRecord(evil, 1.0, 1),),
            blocks=(BlockError(evil, 1.0, 1.0),),
            ranges=(ActivationRange(evil, 1.0, 1.0),),
        )
    )
    page = Page(text)
    assert "script" not in page.tags
    assert "onload" not in {name for name, _ in page.attributes}
    assert page.text.count(evil) >= 11


def test_a_term_is_a_link_to_its_definition_on_the_page() -> None:
    text = render(bare())
    assert f'href="#term-agreement" title="{TERMS["agreement"]}">agreement</a>' in text
    assert f'<dt id="term-agreement">agreement</dt><dd>{TERMS["agreement"]}</dd>' in text
    assert "term-reformat" not in text, "nothing on this page is a reformat"
    assert "term-exact-pixels" in render(bare(notes=("exact-pixels are off",)))


def test_every_link_of_the_page_has_its_target() -> None:
    page = Page(render(report(fp16_blocks=("layer3.0",), reformats=3, notes=tuple(TERMS))))
    targets = {value for name, value in page.attributes if name == "id"}
    links = {value for name, value in page.attributes if name == "href" and value.startswith("#term-")}
    assert len(links) >= len(TERMS) - 1
    assert {link[1:] for link in links} <= targets


def test_the_word_of_a_term_is_no_way_around_the_escaping() -> None:
    text = render(bare(notes=("<b>agreement</b>",), environment={'"relative RMS"': "x"}))
    assert "&lt;b&gt;<a " in text
    assert "&#34;<a " in text


def test_control_characters_are_shown_and_not_obeyed() -> None:
    text = render(bare(model="res\x1b[31mnet\u202e", notes=("\x00\udcff",)))
    assert "res\\x1b[31mnet\\x202e" in text
    text.encode()


def test_a_report_without_measurements_is_a_page_too() -> None:
    nothing = dict.fromkeys(
        ("top1_reference", "top1_engine", "top1_agreement", "relative_rms", "cosine", "max_abs", "fused",
         "checkpoint", "calibration")
    )  # fmt: skip
    page = Page(
        render(
            bare(**nothing, images=0, checks=(), stages=(), notes=(), lint=LintResult((), ()), environment={})
        )
    )
    assert "Built, not judged" in page.text
    assert "not counted" in page.text
    for absent in ("Asked and measured", "Where the error is", "Measured", "Stages", "Environment"):
        assert absent not in page.text


def test_stages_of_no_time_are_drawn() -> None:
    assert "width:0.0%" in render(bare(stages=(StageRecord("load", 0.0, 0),)))
