"""``report.html``: complete, self-contained, and safe against names from outside."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rescompile.accuracy.thumbnails import thumbnail
from rescompile.presenting.html.report_page import MOST_SHOWN, render
from rescompile.presenting.terms import TERMS
from rescompile.report import (
    ActivationRange,
    BlockDamage,
    BlockError,
    BlockWork,
    Check,
    ClassChange,
    Flip,
    FloatOperations,
    Limits,
    LintResult,
    Speed,
    StageRecord,
)
from tests.reports import blocks, frontier, pairs, ranges, report

VOID = {"meta", "br", "img"}


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
        if self._open[-1:] not in (["style"], ["script"]):
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
    assert not {"link", "iframe", "img", "object", "base"} & set(page.tags)
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
    assert page.tags.count("script") == 1, "our own, which the page names by its hash"
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


def test_the_one_script_is_the_one_that_the_page_allows() -> None:
    text = render(report())
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "<script" not in render(bare()), "nothing to sort"


def flip(index: int, **changes) -> Flip:
    fields = {
        "reference": "cat",
        "engine": "dog",
        "label": "cat",
        "reference_margin": 0.125,
        "engine_margin": 1.5,
    }
    return Flip(**({"image": f"images[{index}]"} | fields | changes))


def test_changed_images_are_shown_with_both_classes_and_margins() -> None:
    picture = thumbnail(np.zeros((8, 8, 3), np.uint8), "RGB")
    flips = (flip(0, thumbnail=picture), flip(1, reference_margin=None, engine_margin=None, label=None))
    text = render(bare(flips=flips, logits=((0.0, 0.2), (1.0, 0.8))))
    page = Page(text)
    assert page.tags.count("img") == 1
    assert ("alt", "the image images[0]") in page.attributes
    (address,) = [value for name, value in page.attributes if name == "src"]
    assert base64.b64decode(address.removeprefix("data:image/png;base64,")) == picture
    assert "fp32: cat by 0.125" in page.text
    assert "engine: dog by 1.5" in page.text
    assert "usual error of one logit is 0.2 (RMS), and for 1 of these 1 image " in page.text
    assert "--no-thumbnails" in page.text
    assert "--no-thumbnails" not in render(bare(flips=(flip(1),)))


def test_a_long_list_of_changed_images_says_where_the_rest_is() -> None:
    page = Page(render(bare(flips=tuple(flip(index) for index in range(MOST_SHOWN + 3)))))
    assert page.text.count("engine: dog") == MOST_SHOWN
    assert "3 more are in report.json" in page.text


def test_changes_by_class_blocks_and_tensors_are_tables_that_sort() -> None:
    changes = (ClassChange(name="cat", images=30, changed=4, right_reference=27, right_engine=None),)
    work = tuple(
        BlockWork(block=name, float_ops=floats, int8_ops=ints, weight_bytes=1, activation_bytes=1, layers=1)
        for name, floats, ints in (("layer1.0", 0, 3_000_000), ("fc", 1_000_000, 0))
    )
    tensors = (ActivationRange("relu1", 2.0, 1.5, 0.0118, 0.001, 33.3), ActivationRange("relu2", 1.0, 1.0))
    errors = (BlockError("layer1.0", 31.0, 0.9999),)
    text = render(
        bare(
            class_changes=changes, work=work, ranges=tensors, blocks=errors, fp16_blocks=("fc",), reformats=1
        )
    )
    assert text.count('<table class="sortable">') == 3
    assert (
        '<th scope="row">cat</th><td class="number">30</td><td class="number">4</td><td class="number">27</td>'
        in text
    )
    assert '<th scope="row">layer1.0</th><td class="short">int8</td><td class="number">31.0</td>' in text
    assert '<th scope="row">fc</th><td class="short">FP16</td><td class="number"></td>' in text
    assert '<td class="number">75.0</td>' in text
    assert (
        '<td class="number">0.0118</td><td class="number">2</td><td class="number">1.5</td><td class="number">0.1</td>'
        in text
    )
    assert "int8 with 1 of 2 blocks in FP16" in text


def speed(engine_ms: float, *disturbances: str) -> Speed:
    return Speed(
        batch=8, library="OpenVINO", engine_ms=engine_ms, engine_interval=(0.9, 1.1), fp32_ms=3.0,
        fp32_interval=(2.9, 3.1), engine_bytes=700_000, fp32_bytes=1_400_000, disturbances=disturbances,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("engine_ms", "words"),
    [(1.0, "3.00x faster"), (3.0, "as fast as fp32"), (6.0, "2.00x slower")],
)
def test_the_speed_stands_at_the_top_beside_the_accuracy(engine_ms: float, words: str) -> None:
    page = Page(render(bare(speed=speed(engine_ms))))
    top = page.text[: page.text.index("Asked and measured")]
    assert words in top
    assert "1.4 MB" in top
    assert "97.33 %" in top
    assert "may be unstable" not in page.text
    assert (
        "may be unstable because of x"
        in Page(render(bare(speed=speed(1.0, "may be unstable because of x")))).text
    )


def test_the_page_says_how_to_build_the_engine_again() -> None:
    page = Page(
        render(
            bare(
                command="rescompile build --depth 50",
                date="2026-01-02T03:04:05+00:00",
                options={"effort": "best"},
            )
        )
    )
    assert "rescompile build --depth 50" in page.text
    assert "2026-01-02T03:04:05+00:00" in page.text
    assert "best" in page.text
    assert "builds it again" not in Page(render(bare())).text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_runs_the_page_without_complaints(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render(report()), "utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
         "--enable-logging=stderr", "--dump-dom", (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('aria-label="sort by ') > 5, "the script ran"
