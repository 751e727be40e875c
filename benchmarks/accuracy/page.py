"""``docs/accuracy.md`` from raw results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.accuracy.results import Accuracy, Row
from benchmarks.result_files import raw_results
from rescompile.wording import size

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"

_HEADER = """# Accuracy

Made by `python -m benchmarks.accuracy` (extra `bench`, with `RESCOMPILE_DATA`); do not edit it.
[accuracy-notes.md](accuracy-notes.md) has more about methods, about engines and their graphs, and about build time.

Every row compares one engine with the fp32 network, on images that were not used for calibration. OpenVINO executes
our engines, from a graph that follows TensorRT's rules: symmetric, one scale for an activation tensor, Q/DQ on the
skip only. Engines for CPUs have the form of every CPU, with some weights of seven bits
([ADR 12](adr/0012-relu-by-saturation.md)); where the CPU has VNNI, builds choose another one, which is nearer to fp32
([ADR 18](adr/0018-forms-for-cpus.md)). Graphs *for
TensorRT* are those that TensorRT engines are built from; their activations may use int8's full range. Engines *for
Triton* are executed by plain PyTorch, with the integers that their kernels compute. Engines of other tools are
executed by the runtime that they are made for. ONNX Runtime runs without fusing, so that its INT8 products cannot
saturate on a CPU without VNNI.

[*Agreement*](glossary.md#agreement) is the share of images with fp32's class, [*relative
RMS*](glossary.md#relative-rms) the RMS of the error of the logits divided by the RMS of the logits. With 300
images, one percentage point of top-1 or agreement is three images, which is noise: compare relative RMS instead.
*Seconds* and *memory* are those of calibration and quantization alone, measured one after another, each in its own
process; they are empty where the machine had other load. *Run* is the number of the measurement in the list at the
end, which names the machine, the commit and the command: compare seconds of one machine only.
"""
_COLUMNS = ("engine", "top-1", "drop", "agreement", "relative RMS", "seconds", "memory", "run")


def page(found: Sequence[tuple[Path, Accuracy]]) -> str:
    """The page, from documents and where they lie; of a contender in several the last one counts."""
    return "\n".join([_HEADER, *_networks([run for _, run in found]), "## Runs", "", *_runs(found)])


def _networks(found: Sequence[Accuracy]) -> Iterator[str]:
    rows: dict[tuple[str, str], dict[str, tuple[Row, int]]] = {}
    for number, run in enumerate(found, 1):
        for row in run.rows:
            rows.setdefault((row.network, row.weights), {})[row.contender] = row, number
    for network, entries in rows.items():
        yield from _table(network, sorted(entries.values(), key=lambda entry: not entry[0].ours))


def _runs(found: Sequence[tuple[Path, Accuracy]]) -> Iterator[str]:
    for number, (path, run) in enumerate(found, 1):
        yield f"{number}. {run.measured_on()} ({raw_results(path, PAGE)})."
        yield from (f"   Note: {note}" for note in run.notes)
    yield ""


def _table(network: tuple[str, str], entries: Sequence[tuple[Row, int]]) -> Iterator[str]:
    rows = [row for row, _ in entries]
    judged = next((row for row in rows if row.images), None)
    yield f"## {network[0]} (`{network[1]}`)"
    yield ""
    if judged is not None and judged.top1_reference is not None:
        calibrated = max(row.calibration_images for row in rows)
        yield (
            f"fp32: top-1 {100 * judged.top1_reference:.2f} % of {judged.images:,} images; "
            f"calibrated on {calibrated} others."
        )
        yield ""
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{'---|' * len(_COLUMNS)}"
    yield from (f"| {' | '.join([*_cells(row), str(number)])} |" for row, number in entries)
    yield ""


def _cells(row: Row) -> list[str]:
    """The cells of a row, without the number of its run."""
    if row.skipped is not None or row.agreement is None or row.relative_rms is None:
        return [row.contender, f"skipped: {row.skipped or 'not judged'}", *[""] * (len(_COLUMNS) - 3)]
    top1 = drop = ""
    if row.top1 is not None and row.top1_reference is not None:
        top1 = f"{100 * row.top1:.2f} %"
        drop = f"{100 * (row.top1_reference - row.top1):.2f}"
    name = f"**{row.contender}**" if row.ours else row.contender
    return [
        name,
        top1,
        drop,
        f"{100 * row.agreement:.2f} %",
        f"{row.relative_rms:.2g}" if row.relative_rms < 1e-3 else f"{row.relative_rms:.4f}",
        "" if row.seconds is None else f"{row.seconds:.1f}",
        "" if row.peak_rss_bytes is None else size(row.peak_rss_bytes),
    ]
