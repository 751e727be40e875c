"""``docs/coverage.md`` from raw results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median

import msgspec

from benchmarks.coverage.contenders import Result
from benchmarks.result_files import Run, raw_results

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """All tools on one network."""

    name: str
    failed: str | None = None
    """The reason why the fp32 file could not be made."""
    results: tuple[Result, ...] = ()


FORMAT = "rescompile-coverage-1"
OURS = "rescompile"


class Coverage(Run, frozen=True, kw_only=True):
    """One run."""

    format: str = FORMAT
    images: int
    size: int
    calibration_images: int
    versions: dict[str, str]
    networks: tuple[Network, ...]
    notes: tuple[str, ...] = ()
    """Sentences about this run that a reader must know, written by hand."""


_HEADER = """# Coverage

Made by `python -m benchmarks.coverage` (extra `bench`, torchvision, timm, and `RESCOMPILE_DATA`); do not edit it.

{count} networks of torchvision and timm, exported to ONNX, quantized to INT8 by each tool with the same {calibration}
photographs and compared with the fp32 file on the same {images} others, all of {size} pixels. The weights are random,
with batch norms and a classifier fitted to the calibration images; the last batch norm of a residual branch has the
scale 0.25. This compares how faithfully a network is quantized, not how well it classifies. In deep random networks a
small error grows, so compare tools on the same network, not networks with each other.

[*Agreement*](glossary.md#agreement) is the share of images with fp32's class, [*relative
RMS*](glossary.md#relative-rms) the RMS of the error of the logits divided by the RMS of the logits, *adds* the
additions that are fused into a convolution, *INT8* the share of convolutions and fully connected layers that run as
INT8. OpenVINO executes our engines and NNCF's. ONNX Runtime executes its own without fusing, so its
*INT8* counts what its file quantizes.

The two figures do not always order tools alike. An image changes its class only where two classes are nearly equal, and
random networks give many such images. Which of them flip is chance: on timm:resnet101d our error is six tenths of ONNX
Runtime's, and one image more changes its class. So a few images more or less say little about one network; the columns
below count all of them.
"""


def page(found: Coverage, path: Path) -> str:
    """The page, from one document and the file that it lies in."""
    lines = [
        _HEADER.format(
            count=len(found.networks),
            images=found.images,
            calibration=found.calibration_images,
            size=found.size,
        ),
        *(f"{note}\n" for note in found.notes),
        *_summary(found),
        "",
        "| network | tool | agreement | relative RMS | adds | INT8 |",
        "|---|---|---|---|---|---|",
        *(line for network in found.networks for line in _rows(network)),
        "",
        f"{found.measured_on(found.versions)} ({raw_results(path, PAGE)}).",
        "",
    ]
    return "\n".join(lines)


def _summary(found: Coverage) -> Iterator[str]:
    yield (
        "| tool | built | median agreement | mean agreement | rescompile's is higher, equal, lower | "
        "median relative RMS | networks on which its relative RMS is the lowest |"
    )
    yield "|---|---|---|---|---|---|---|"
    complete = [network for network in found.networks if not any(result.failed for result in network.results)]
    best = [min(network.results, key=_error).contender for network in complete if network.results]
    for name in dict.fromkeys(result.contender for network in found.networks for result in network.results):
        rows = [
            result for network in found.networks for result in network.results if result.contender == name
        ]
        built = [row for row in rows if row.failed is None]
        agreements = [row.agreement for row in built if row.agreement is not None] or [0.0]
        error = median(map(_error, built)) if built else 0.0
        yield (
            f"| {name} | {len(built)} of {len(rows)} | {100 * median(agreements):.1f} % | "
            f"{100 * mean(agreements):.1f} % | {_beside(found, name)} | {error:.4f} | "
            f"{best.count(name)} of {len(best)} |"
        )


def _beside(found: Coverage, name: str) -> str:
    """The number of networks on which our agreement is higher than that of ``name``, the same, and lower."""
    count = [0, 0, 0]
    for network in found.networks:
        agreement = {result.contender: result.agreement for result in network.results}
        ours, theirs = agreement.get(OURS), agreement.get(name)
        if name != OURS and ours is not None and theirs is not None:
            count[0 if ours > theirs else 1 if ours == theirs else 2] += 1
    return ", ".join(map(str, count)) if any(count) else ""


def _error(result: Result) -> float:
    return float("inf") if result.relative_rms is None else result.relative_rms


def _rows(network: Network) -> Iterator[str]:
    if network.failed:
        yield f"| {network.name} |  | not exported: {network.failed} |  |  |  |"
    for result in network.results:
        if result.failed:
            yield f"| {network.name} | {result.contender} | not built: {_cell(result.failed)} |  |  |  |"
            continue
        adds = "" if result.adds is None else f"{result.adds_fused} of {result.adds}"
        yield (
            f"| {network.name} | {result.contender} | {100 * (result.agreement or 0):.0f} % | {_error(result):.4f} | "
            f"{adds} | {100 * (result.int8_share or 0):.0f} % |"
        )


def _cell(text: str) -> str:
    return text.replace("|", "/")[:160]
