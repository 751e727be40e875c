"""The page and the plots of measurements; a real browser opens the page if one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from rescompile.errors import UsageError
from rescompile.measuring.bench import BenchReport
from rescompile.measuring.measurements import Measurements, read_measurements
from rescompile.measuring.profile_report import ProfileReport
from rescompile.presenting.html.measurements_page import plots_of, render_measurements
from rescompile.presenting.plots.bench import accuracies, labels
from rescompile.presenting.plots.profile import notes_above_the_line
from tests.measuring.scripted import steady
from tests.measuring.test_profile import RATES, block, engine
from tests.measuring.test_run_comparison import bench_report
from tests.presenting.test_report_page import Page, without_links

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def benches() -> list[BenchReport]:
    int8 = bench_report({1: steady(5), 2: steady(8), 8: steady(28)}, notes=("may be unstable because of X",))
    facts = msgspec.structs.replace(int8.engine, precision="fp32", top1=0.81, directory="f")
    return [int8, bench_report({1: steady(12), 8: steady(80, noise=0.3)}, engine=facts)]


def profile_report() -> ProfileReport:
    engines = tuple(
        engine(name, block("stem", ms), block("layer1.0", 3 * ms), block("fc", 0.1), wall=6 * ms)
        for name, ms in (("fp32", 1.0), ("int8", 0.5))
    )
    origin = benches()[0].origin
    return ProfileReport(
        batch=1, origin=origin, roofline=RATES, engines=engines, findings=("F.",), notes=("N.",)
    )


def everything() -> Measurements:
    return Measurements(benches(), [profile_report()])


def test_the_page_names_nothing_outside_of_itself_and_is_the_same_each_time() -> None:
    text = render_measurements(everything())
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}
    assert text == render_measurements(everything())


def test_every_plot_and_every_figure_is_on_the_page() -> None:
    found = everything()
    text = Page(render_measurements(found)).text
    captions = [plot.caption for plot in plots_of(found)]
    assert [plot.name for plot in plots_of(found)] == [
        "throughput", "latency", "accuracy", "roofline", "timeline",
    ]  # fmt: skip
    for part in (
        *captions,
        "2.4x faster than fp32",
        "int8 takes 5 ms for a call at batch 1, fp32 12 ms (medians)",
        "F.",
        "N.",
        "abc",
    ):
        assert part in text, part


def test_a_page_of_one_kind_has_the_headline_of_its_kind() -> None:
    assert "0.5 ms with int8" not in render_measurements(Measurements(profiles=[profile_report()]))
    assert "3 ms with int8" in render_measurements(Measurements(profiles=[profile_report()]))


def test_without_an_fp32_engine_of_the_same_network_the_headline_is_a_time() -> None:
    int8, fp32 = benches()
    for others in (
        [],
        [int8],
        [msgspec.structs.replace(fp32, engine=msgspec.structs.replace(fp32.engine, model="x"))],
    ):
        assert "5 ms with int8" in render_measurements(Measurements(benches=[int8, *others]))


def test_facts_that_all_results_share_stand_on_the_page_once() -> None:
    text = render_measurements(everything())
    device = benches()[0].origin.device
    assert text.count(f"<td>{device}</td>") == 1
    assert text.count("<h3>") == 3


def test_blocks_above_the_machines_lines_have_a_note() -> None:
    report = profile_report()
    assert notes_above_the_line(report)[0].startswith(
        "fp32: 1 block above the machine's lines (fc): the limits"
    )
    assert "int8: 1 block above" in render_measurements(Measurements(profiles=[report]))
    slow = tuple(
        msgspec.structs.replace(
            one,
            blocks=tuple(
                msgspec.structs.replace(block, arithmetic_ms=block.ms, memory_ms=0.0) for block in one.blocks
            ),
        )
        for one in report.engines
    )
    assert notes_above_the_line(msgspec.structs.replace(report, engines=slow)) == []


def test_many_notes_are_folded_and_few_are_open() -> None:
    noisy = [msgspec.structs.replace(report, notes=("n",) * 5) for report in benches()]
    assert "10 notes on what may have disturbed" in render_measurements(Measurements(benches=noisy))
    assert "notes on what may" not in render_measurements(Measurements(benches=benches()))


def test_accuracy_is_top1_or_agreement_and_is_left_out_where_nothing_was_measured() -> None:
    (report,) = benches()[:1]
    assert accuracies([report]) == [80.0]
    unlabelled = msgspec.structs.replace(report.engine, top1=None)
    without = msgspec.structs.replace(report, engine=unlabelled)
    assert accuracies([without]) == [97.0]
    assert accuracies([report, without]) == [97.0, 97.0], "top-1 is not drawn beside an agreement"
    unknown = msgspec.structs.replace(unlabelled, top1_agreement=None)
    alone = Measurements(benches=[msgspec.structs.replace(report, engine=unknown)])
    assert "accuracy" not in [plot.name for plot in plots_of(alone)]
    assert "Accuracy against latency" not in render_measurements(alone)


def test_engines_of_the_same_kind_are_told_apart_by_their_directories() -> None:
    one, other = benches()[0], benches()[0]
    other = msgspec.structs.replace(other, engine=msgspec.structs.replace(other.engine, directory="g"))
    assert labels([one, other]) == ["resnet50 int8 openvino, e", "resnet50 int8 openvino, g"]
    assert labels([one]) == ["resnet50 int8 openvino"]


@pytest.mark.parametrize("plot", plots_of(everything()), ids=lambda plot: plot.name)
def test_a_plot_is_well_formed_and_has_a_bitmap(plot, tmp_path: Path) -> None:
    svg = plot.svg()
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg == plot.svg()
    path = tmp_path / "p.png"
    path.write_bytes(plot.png())
    with Image.open(path) as image:
        assert image.width > 800
        colours = [found for _, found in image.convert("RGB").getcolors(1 << 24) or ()]
        assert max(max(found) - min(found) for found in colours) > 60, "it is drawn in colour, as on the page"


def test_text_from_outside_stays_text() -> None:
    evil = '<script>alert(1)</script>"&'
    (report,) = benches()[:1]
    facts = msgspec.structs.replace(report.engine, model=evil, directory=evil)
    page = render_measurements(
        Measurements(benches=[msgspec.structs.replace(report, engine=facts, notes=(evil,))])
    )
    assert "script" not in Page(page).tags


@pytest.mark.parametrize(
    "content", [b"{}", b"no json", b"\xff", b'{"format": "other"}', b'{"format": "rescompile-bench-1"}']
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.json is not a result"):
        read_measurements([path])
    with pytest.raises(UsageError, match="cannot be read"):
        read_measurements([tmp_path])


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("profile.json", "bench.json")]
    paths[0].write_bytes(profile_report().to_json())
    paths[1].write_bytes(benches()[0].to_json())
    found = read_measurements(paths)
    assert (found.benches, found.profiles) == ([benches()[0]], [profile_report()])


def test_results_of_the_suites_are_sent_to_their_own_command(tmp_path: Path) -> None:
    path = tmp_path / "suites.json"
    path.write_text('{"format": "rescompile-suites-1"}')
    with pytest.raises(
        UsageError, match=r"suites\.json is a result of the suites .* python -m benchmarks\.suite_page"
    ):
        read_measurements([path])


def browse(page: Path, width: int, *words: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--hide-scrollbars",
    ]
    command = [BROWSER, *flags, f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},2000"]
    return subprocess.run(
        [*command, *words, page.as_uri()], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here to open the page in")
@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_shows_every_plot_without_a_complaint(tmp_path: Path, width: int) -> None:
    found = everything()
    page = tmp_path / "page.html"
    page.write_text(render_measurements(found), "utf-8")
    shown = browse(page, width, "--dump-dom")
    assert "CONSOLE" not in shown.stderr, shown.stderr
    for plot in plots_of(found):
        assert f"<figcaption>{plot.caption}</figcaption>" in without_links(shown.stdout)
    assert shown.stdout.count('<svg role="img"') == len(plots_of(found))
    picture = tmp_path / "page.png"
    browse(page, width, f"--screenshot={picture}")
    with Image.open(picture) as image:
        assert image.width == width
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 100


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here to open the page in")
def test_the_browser_would_have_complained(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = render_measurements(Measurements(benches=benches()))
    page.write_text(text.replace("</body>", "<script>1</script></body>"), "utf-8")
    assert "CONSOLE" in browse(page, 800, "--dump-dom").stderr, "the page's policy allows no script"
