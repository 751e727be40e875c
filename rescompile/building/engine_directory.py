"""The engine directory's contents: which file is written by which stage, and the manifest over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calibration.table import CalibrationTable
from rescompile import manifest as manifests
from rescompile.backends import choose_backend, get_backend
from rescompile.backends.base import Backend, BuildRequest, Payload
from rescompile.building.deployable import Deployable
from rescompile.building.golden import TOLERANCE
from rescompile.building.sealing import write_engine
from rescompile.building.source import Source
from rescompile.cache import cache_directory
from rescompile.config import BuildConfig, InputFormat
from rescompile.environment import describe
from rescompile.files import atomic_write
from rescompile.manifest import CALIBRATION, GOLDEN, GRAPH, REFERENCE, CalibrationRef, Manifest, TensorSpec
from rescompile.progress import Progress

TIMING_CACHE = "tensorrt.timing"
"""In the cache directory: TensorRT's timings of kernels, which make later builds for the same GPU quicker."""
INPUT_TYPES: dict[InputFormat, tuple[Literal["float32", "uint8"], Literal["NCHW", "NHWC"]]] = {
    "float32-nchw": ("float32", "NCHW"),
    "uint8-nhwc": ("uint8", "NHWC"),
}


@dataclass(frozen=True)
class ChosenBackend:
    """The backend of a build, and what must be said of the choice."""

    backend: Backend
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the stages made, as far as manifest and report speak of it."""

    source: Source
    config: BuildConfig
    backend: Backend
    payload: Payload
    table: CalibrationTable | None
    class_names: tuple[str, ...] | None
    """Names that the image set gave."""
    fp16_blocks: tuple[str, ...] = ()


def backend_for(config: BuildConfig) -> ChosenBackend:
    """The backend that was asked for, or the best of this machine for ``auto``, with the reason.

    Raises:
        UsageError: the target does not exist for the backend.
        BackendUnavailable: it cannot build here.
    """
    name, notes = config.backend, tuple[str, ...]()
    if name == "auto":
        name, reason = choose_backend()
        notes = (f"--backend auto chose {name}: {reason}",)
    backend = get_backend(name)
    backend.check(config.target)
    return ChosenBackend(backend, notes)


def output_of(source: Source, config: BuildConfig, backend: Backend) -> Path:
    """The directory that was asked for, or ``resnet101-int8-openvino`` in the working directory."""
    return config.output or Path(f"{source.name}-{config.precision}-{backend.name}")


def request(folder: Path, source: Source, config: BuildConfig, progress: Progress) -> BuildRequest:
    """What the backend is asked to build from the graph in ``folder``."""
    return BuildRequest(
        model=folder / GRAPH,
        precision=config.precision,
        batch=config.batch,
        image_shape=image_shape(source, config),
        target=config.target,
        timing_cache=cache_directory() / TIMING_CACHE,
        progress=progress.advanced,
    )


def image_shape(source: Source, config: BuildConfig) -> tuple[int, int, int]:
    """Shape of one input in the engine's layout."""
    side = source.preprocess.crop
    return (side, side, 3) if config.input_format == "uint8-nhwc" else (3, side, side)


def write_graphs(
    folder: Path,
    source: Source,
    deployable: Deployable,
    table: CalibrationTable | None,
    *,
    keep_reference: bool,
) -> None:
    """Write the deployable graph, the fp32 reference and the calibration table."""
    atomic_write(folder / GRAPH, deployable.graph.SerializeToString())
    if keep_reference:
        atomic_write(folder / REFERENCE, source.graph.SerializeToString())
    if table is not None:
        table.write(folder / CALIBRATION)


def clear(folder: Path) -> None:
    """Remove the files of an engine that another one takes the place of.

    New files could have the same names, and a library may still have the old ones mapped.
    """
    for path in folder.iterdir():
        path.unlink()


def seal(folder: Path, contents: Contents) -> Manifest:
    """Write ``manifest.json`` over all files that are in ``folder`` now."""
    source, config, payload = contents.source, contents.config, contents.payload
    low, high = config.batch.min, config.batch.max
    batch = low if low == high else -1
    fed = TensorSpec("input", (batch, *image_shape(source, config)), *INPUT_TYPES[config.input_format])
    unsealed = Manifest(
        format=manifests.FORMAT,
        model=source.name,
        depth=source.depth,
        precision=config.precision,
        backend=contents.backend.name,
        target=payload.target,
        batch=config.batch,
        inputs=(fed,),
        outputs=(TensorSpec("logits", (batch, source.class_count), "float32", "NC"),),
        preprocess=source.preprocess,
        classes=_class_names(source, contents.class_names),
        checkpoint=source.checkpoint,
        calibration=calibration_ref(contents.table),
        golden_relative_rms=TOLERANCE[config.precision],
        files={},
        environment=describe(),
        fp16_blocks=contents.fp16_blocks,
    )
    return write_engine(folder, unsealed)


def calibration_ref(table: CalibrationTable | None) -> CalibrationRef | None:
    """How manifest and report name the table."""
    if table is None:
        return None
    return CalibrationRef(table.sha256, table.images.source, table.images.count, table.method)


def write_golden(folder: Path, golden: bytes) -> None:
    """Write ``golden.npz``."""
    atomic_write(folder / GOLDEN, golden)


def _class_names(source: Source, found: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the classes: the user's or ImageNet's, else those of the image set, else numbers."""
    if source.class_names is not None:
        return source.class_names
    if found is not None and len(found) == source.class_count:
        return found
    return tuple(f"class {index}" for index in range(source.class_count))
