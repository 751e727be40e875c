"""``README.md`` of an engine directory: what the engine is, how it was judged, and the lines that run it.

The same engine gives the same bytes: no times, no folders and nothing of the machine.
"""

from __future__ import annotations

from rescompile.manifest import (
    CALIBRATION,
    GOLDEN,
    GRAPH,
    MANIFEST,
    OPENVINO_MODEL,
    OPENVINO_WEIGHTS,
    README,
    REFERENCE,
    REPORT_HTML,
    REPORT_JSON,
    TENSORRT_ENGINE,
    TRITON_PLAN,
    TRITON_WEIGHTS,
    Manifest,
    OutputSpec,
    TensorSpec,
)
from rescompile.presenting import report_lines
from rescompile.presenting.report_lines import Line
from rescompile.report import BuildReport
from rescompile.wording import plain

_PURPOSE = {
    MANIFEST: "the description that programs read, with the hash of every file",
    GRAPH: "the deployable graph, from which the engine was built",
    REFERENCE: "the fp32 network, which `rescompile verify` compares with",
    CALIBRATION: "the INT8 scales",
    GOLDEN: "images and answers, which each load tries first",
    REPORT_JSON: "the verdict and every figure",
    REPORT_HTML: "the verdict as a page to read",
    OPENVINO_MODEL: "the engine",
    OPENVINO_WEIGHTS: "its weights",
    TENSORRT_ENGINE: "the engine",
    TRITON_PLAN: "the engine: its launches",
    TRITON_WEIGHTS: "its weights",
}
_NUMBERS = ("values", "features")
_VERSIONS = ("rescompile", "openvino", "tensorrt", "tensorrt-rtx", "triton", "onnx", "torch")
"""Software whose versions decide what is in the directory."""


def engine_readme(manifest: Manifest, report: BuildReport) -> str:
    """The page as Markdown; ``manifest`` may still lack files that are written after it."""
    sections = (
        (f"{manifest.model}, {report_lines.precision(report)}, for {manifest.backend}", _opening(manifest)),
        ("How it was judged", _judged(report)),
        ("Run it", _running(manifest)),
        ("Input and output", _ports(manifest)),
        ("Where it comes from", _origin(manifest)),
        ("Files", _table([(f"`{name}`", text) for name, text in _files(manifest)])),
        ("Licence", _LICENCE),
    )
    first, *others = (f"{title}\n\n{text}\n" for title, text in sections)
    return "\n".join([f"# {first}", *(f"## {other}" for other in others)])


_LICENCE = (
    "Weights keep the licence of the checkpoint that they come from, which this directory does not know; ask its "
    "publisher. rescompile, which runs the engine, is under the Apache License 2.0."
)


def _opening(manifest: Manifest) -> str:
    target = f" for {manifest.target}" if manifest.target else ""
    form = f"\n\nForm for CPUs: {manifest.cpu_form}." if manifest.cpu_form else ""
    kept = f"\n\nBlocks in FP16: {', '.join(manifest.fp16_blocks)}." if manifest.fp16_blocks else ""
    return (
        f"This folder is an engine{target}, built by rescompile {manifest.environment.get('rescompile', '')}. It takes "
        f"batches of {manifest.batch} images (smallest, best and largest size where there are three).{kept}{form}"
    )


def _judged(report: BuildReport) -> str:
    checks = [
        (
            check.name,
            f"asked {check.asked}, measured {check.measured}: {'passed' if check.passed else 'failed'}",
        )
        for check in report.checks
    ]
    verdict = f"**{report.verdict}.** {_text(report_lines.explanation(report))}"
    figures = _table([*checks, *report_lines.measurements(report)])
    return f"{verdict}\n\n{figures}" if figures else verdict


def _running(manifest: Manifest) -> str:
    several = len(manifest.outputs) > 1 or manifest.outputs[0].kind in _NUMBERS
    call = "engine(engine.preprocess(photo))" if several else "engine.classify(photo)"
    return f"""In Python, from this folder's parent, with this folder's name in place of `ENGINE`:

```python
import rescompile

with rescompile.load("ENGINE") as engine:
    photo = "photo.jpg"
    print({call})
```

In C++, with `rgb` as pixels of 8 bits:

```cpp
auto engine = rescompile::Engine::load("ENGINE");
auto answers = engine->infer(*engine->preprocess(rgb, width, height));
```

On the command line, and once more against your own images:

```
rescompile run ENGINE photo.jpg
rescompile verify ENGINE --validation-set IMAGES
```"""


def _ports(manifest: Manifest) -> str:
    rows = [("input", _port(port)) for port in manifest.inputs]
    rows += [("output", f"{_port(port)}: {_meaning(port)}") for port in manifest.outputs]
    if manifest.sizes is not None:
        own = "x".join(map(str, manifest.preprocess.size))
        rows.append(
            ("height and width", f"{manifest.sizes} (smallest and largest); calibrated and tuned at {own}")
        )
    return _table([*rows, ("preprocessing", str(manifest.preprocess))])


def _port(port: TensorSpec) -> str:
    return f"{port.name}, {port.dtype} {port.layout} {list(port.shape)}"


def _meaning(output: OutputSpec) -> str:
    if not output.labels:
        return output.kind
    more = ", …" if len(output.labels) > 3 else ""
    return f"{len(output.labels)} {output.kind} ({', '.join(output.labels[:3])}{more})"


def _origin(manifest: Manifest) -> str:
    checkpoint, calibration = manifest.checkpoint, manifest.calibration
    rows: list[Line] = [("weights", f"{checkpoint.source}, SHA-256 {checkpoint.sha256}")]
    if calibration is not None:
        images = report_lines.calibrated_on(calibration.images, calibration.source)
        rows.append(("scales", f"by {calibration.method} from {images}"))
    rows += [(name, version) for name in _VERSIONS if (version := manifest.environment.get(name))]
    return _table(rows)


def _files(manifest: Manifest) -> list[Line]:
    names = {*manifest.files, MANIFEST, REPORT_JSON, REPORT_HTML} - {README}
    return [(name, _PURPOSE.get(name, "machine code")) for name in sorted(names)]


def _table(rows: list[Line] | tuple[Line, ...]) -> str:
    if not rows:
        return ""
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {_text(label)} | {_text(value)} |" for label, value in rows)]
    )


def _text(words: str) -> str:
    """``words`` with all Markdown escaped but quotes of code, because names come from untrusted files."""
    return "".join(f"\\{char}" if char in "\\*_[]<>|#!" else char for char in plain(words))
