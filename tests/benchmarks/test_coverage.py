"""The coverage page is made of its committed raw results, and says what failed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from benchmarks.coverage.contenders import Result
from benchmarks.coverage.page import PAGE, Coverage, Network, page


def committed() -> Path:
    """The raw results that the committed page links to."""
    (link,) = re.findall(r"raw results\]\((.+?)\)", PAGE.read_text())
    return (PAGE.parent / link).resolve()


def test_the_committed_page_is_that_of_its_raw_results() -> None:
    path = committed()
    found = msgspec.json.decode(path.read_bytes(), type=Coverage)
    assert page(found, path) == PAGE.read_text()


def test_rescompile_builds_at_least_as_many_networks_as_every_other_tool() -> None:
    found = msgspec.json.decode(committed().read_bytes(), type=Coverage)
    built: dict[str, int] = {}
    for network in found.networks:
        for result in network.results:
            built[result.contender] = built.get(result.contender, 0) + (result.failed is None)
    assert len(found.networks) == 40
    assert built["rescompile"] == max(built.values())


def test_what_failed_has_its_reason_and_does_not_count(tmp_path: Path) -> None:
    good = Result(
        contender="rescompile", agreement=0.9, relative_rms=0.05, adds=8, adds_fused=7, int8_share=1.0
    )
    bad = Result(contender="NNCF", failed="no | such operator")
    found = msgspec.structs.replace(
        msgspec.json.decode(committed().read_bytes(), type=Coverage),
        networks=(Network(name="a", results=(good, bad)), Network(name="b", failed="torch cannot export it")),
    )
    text = page(found, tmp_path / "raw.json")
    assert "| rescompile | 1 of 1 | 90.0 % | 90.0 % |  | 0.0500 | 0 of 0 |" in text
    assert "| NNCF | 0 of 1 |" in text
    assert "| a | rescompile | 90 % | 0.0500 | 7 of 8 | 100 % |" in text
    assert "not built: no / such operator" in text
    assert "not exported: torch cannot export it" in text


def test_agreements_are_counted_network_by_network(tmp_path: Path) -> None:
    def network(name: str, ours: float, theirs: float | None) -> Network:
        one = Result(contender="rescompile", agreement=ours, relative_rms=0.1)
        other = Result(contender="NNCF", agreement=theirs, relative_rms=0.2, failed=None if theirs else "no")
        return Network(name=name, results=(one, other))

    found = msgspec.structs.replace(
        msgspec.json.decode(committed().read_bytes(), type=Coverage),
        networks=(
            network("a", 0.9, 0.8),
            network("b", 0.7, 0.7),
            network("c", 0.6, 0.7),
            network("d", 0.6, None),
        ),
    )
    assert "| NNCF | 3 of 4 | 70.0 % | 73.3 % | 1, 1, 1 | 0.2000 | 0 of 3 |" in page(
        found, tmp_path / "raw.json"
    )


@pytest.mark.parametrize("package", ["torch", "openvino", "nncf", "onnxruntime"])
def test_the_page_says_what_it_was_measured_with(package: str) -> None:
    assert f"{package} " in PAGE.read_text()
