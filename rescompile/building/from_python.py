"""The configuration of a build as a program writes it: live modules, arrays and data loaders, names and paths."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.images import InMemoryImages
from calibration.preprocess import Preprocess, Size
from rescompile.config import (
    DEFAULT_CALIBRATION_IMAGES,
    BuildConfig,
    CalibrationConfig,
    Effort,
    Fp16Blocks,
    InputFormat,
    ModelConfig,
    Validate,
    parse_batch,
    parse_fp16_blocks,
    parse_sizes,
)
from rescompile.errors import UsageError
from rescompile.files import check_output_directory
from rescompile.manifest import Precision
from rescompile.report import Limits
from rescompile.sources.name_prefixes import has_scheme
from rescompile.sources.network import EnsembleMean, SourceNetwork
from rescompile.sources.preprocess_options import PreprocessOptions

VALIDATION_IMAGES = 2000
"""Images that are taken from a data loader for the verdict, where no number is passed."""
_IMAGES = ("image", "images", "pixel_values", "x")
_LABELS = ("label", "labels", "y")
_ONNX, _TABLE = ".onnx", ".json"

Images = str | Path | NDArray[Any] | tuple[Any, Any] | Iterable[Any] | InMemoryImages
"""A folder or .npz; uint8 pixels [N, H, W, C] or normalized floats [N, C, H, W]; (images, labels); a data loader."""


class BuildOptions(TypedDict, total=False):
    """The keywords of ``rescompile.build``, beside a network."""

    weights: str | Path
    """Checkpoint for a network that is named; ``pretrained`` (default) or ``random``."""
    calibration: Images | None
    """Images that choose the scales of an int8 engine, or a calibration table (.json)."""
    validation: Images | None
    """Images that the engine is judged on."""
    precision: Precision
    backend: str
    output: str | Path | None
    """Engine directory; default ``NAME-PRECISION-BACKEND``."""
    preprocess: Any
    """The network's own: a ``Preprocess`` or a torchvision transform (Resize, CenterCrop, ToTensor, Normalize)."""
    size: Size | None
    """Side, or height and width, of the input; by default that of float images, or the network's own."""
    class_names: Iterable[str] | Path | None
    """Names in the order of the classes, or a file of them."""
    outputs: Iterable[str]
    """Inner modules to return in place of the network's own answer: ``c2`` to ``c5``, or PyTorch's names."""
    ensemble_mean: EnsembleMean
    """The quantity to average if several networks are passed: ``probabilities`` (default) or ``logits``."""
    limits: Limits | None
    effort: Effort | None
    fp16_blocks: Fp16Blocks | None
    batch: int | str
    """One batch size, or MIN:OPT:MAX."""
    dynamic_size: str | None
    """Range of heights and widths that the engine takes: ``160:320`` or ``128x160:512x640``; None is ``size`` alone."""
    input_format: InputFormat
    calibration_images: int
    validation_images: int | None
    validate: Validate
    target: str | None
    seed: int
    force: bool


def build_config(network: Any, options: BuildOptions) -> BuildConfig:
    """The configuration of a build of ``network``.

    Raises:
        RescompileError, CalibrationError: a keyword's value cannot be used.
        TypeError: ``network`` is not a network, or keywords come beside a whole configuration.
    """
    if isinstance(network, BuildConfig):
        if options:
            raise TypeError(f"a BuildConfig says everything; leave {', '.join(options)} out")
        return network
    unknown = sorted(set(options) - set(BuildOptions.__annotations__))
    if unknown:
        raise TypeError(f"build() has no keyword {', '.join(unknown)}")
    return _config(network, options)


_SIDE = (int, np.integer)
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "limits": ((Limits,), "rescompile.Limits(...)"),
    "seed": (_SIDE, "a whole number"),
    "size": ((*_SIDE, tuple, list), "a side, or (height, width)"),
    "calibration_images": (_SIDE, "a whole number"),
    "validation_images": (_SIDE, "a whole number"),
}
"""Keywords whose values nothing else reads before they are used, and what they may be."""


def _check_types(options: BuildOptions) -> None:
    for name, (types, words) in _TYPES.items():
        value: Any = options.get(name)
        sides = value if isinstance(value, tuple | list) else ()
        right = isinstance(value, types) and all(isinstance(side, _SIDE) for side in sides)
        if value is not None and not (right and len(sides) in (0, 2)):
            raise TypeError(f"build() takes {words} as {name}, not {value!r}")


def _config(network: Any, options: BuildOptions) -> BuildConfig:
    fields: Any = dict(options)
    _check_types(options)
    if isinstance(options.get("fp16_blocks"), str):
        fields["fp16_blocks"] = parse_fp16_blocks(fields["fp16_blocks"])
    output = Path(fields["output"]) if fields.get("output") else None
    if output is not None:
        check_output_directory(output, force=fields.get("force", False))  # before a module is exported
    calibration = fields.get("calibration")
    table = _is_table(calibration)
    limit = fields.get("calibration_images", DEFAULT_CALIBRATION_IMAGES)
    seed, validation_images = fields.get("seed", 0), fields.get("validation_images")
    images = None if table else image_set(calibration, limit, "calibration images")
    validation = image_set(
        fields.get("validation"), validation_images or VALIDATION_IMAGES, "validation images"
    )
    kept = ("precision", "backend", "limits", "fp16_blocks", "input_format", "target", "force", "validate")
    return BuildConfig(
        model=replace(
            _model(network, options, _size_of(options, images, validation)),
            sizes=parse_sizes(fields.get("dynamic_size")),
        ),
        calibration=CalibrationConfig(
            images=images,
            table=Path(calibration) if table else None,
            effort=fields.get("effort"),
            limit=limit,
            seed=seed,
        ),
        validation_set=validation,
        validation_images=validation_images,
        batch=parse_batch(str(fields.get("batch", "1:1:32"))),
        output=output,
        **{name: fields[name] for name in kept if name in fields},
    )


def _is_table(calibration: object) -> bool:
    return isinstance(calibration, str | Path) and Path(calibration).suffix == _TABLE


def _size_of(options: BuildOptions, *sets: Path | InMemoryImages | None) -> Size | None:
    """The input's size where the program says it, or passes images as the network takes them."""
    if options.get("size") or options.get("preprocess") is not None:
        return options.get("size")
    shapes = (
        images.images.shape for images in sets if isinstance(images, InMemoryImages) and images.normalized
    )
    _, _, height, width = next(shapes, (0, 0, 0, 0))
    return (height if height == width else (height, width)) or None


def _model(network: Any, options: BuildOptions, size: Size | None) -> ModelConfig:
    seed, outputs = options.get("seed", 0), _outputs_of(options)
    names = options.get("class_names")
    classes = Path(names) if isinstance(names, str | Path) else None if names is None else tuple(names)
    if isinstance(network, list | tuple):
        members = tuple(_model(member, options, size) for member in network)
        return ModelConfig(
            members=members, seed=seed, ensemble_mean=options.get("ensemble_mean", "probabilities")
        )
    if _is_module(network):
        return ModelConfig(network=_live(network, options, size), seed=seed, classes=classes)
    if not isinstance(network, str | Path):
        found = (
            f"the class {network.__name__}; pass {network.__name__}(...)"
            if isinstance(network, type)
            else (f"a {type(network).__name__}")
        )
        raise TypeError(f"build() takes a torch.nn.Module, a path, a name or a BuildConfig, not {found}")
    weights = str(options.get("weights", "pretrained"))
    config = ModelConfig(
        preprocess=_options_of(options.get("preprocess"), size), seed=seed, outputs=outputs, classes=classes,
        **_source(network, weights),
    )  # fmt: skip
    if weights not in ("pretrained", config.weights):
        raise UsageError(f"{network} brings its own weights; leave weights={weights} out")
    return config


def _source(network: str | Path, weights: str) -> dict[str, Any]:
    """The fields of ``ModelConfig`` that say which network it is."""
    path = Path(network)
    if path.suffix == _ONNX:
        return {"onnx": path}
    if (path / "config.json").is_file():
        return {"model": f"hf:{network}"}
    if path.exists():
        return {"weights": str(network)}
    if isinstance(network, Path) or (path.suffix and not has_scheme(network)):
        raise UsageError(f"{network} does not exist; check the path of the network")
    return {"model": network, "weights": weights}


def _live(module: Any, options: BuildOptions, size: Size | None) -> SourceNetwork:
    from rescompile.sources.modules import network_of

    given = options.get("preprocess")
    own = known_preprocess(given) if given is not None else None
    return network_of(
        module,
        preprocess=own,
        preprocess_from="the program" if own else None,
        size=(size, size) if isinstance(size, int) else size,
        outputs=_outputs_of(options),
    )


def _outputs_of(options: BuildOptions) -> tuple[str, ...]:
    """The inner modules to return; one text names several with commas, as on the command line."""
    given = options.get("outputs", ())
    return tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else tuple(given)


def _is_module(network: object) -> bool:
    torch = sys.modules.get("torch")  # a program that has a module has imported torch
    return torch is not None and isinstance(network, torch.nn.Module)


def known_preprocess(given: object) -> Preprocess:
    """``given`` as our own preprocessing: ours already, or a transform of torchvision's.

    Raises:
        UsageError: it cannot be expressed.
    """
    from rescompile.sources.transforms import transform_preprocess

    return given if isinstance(given, Preprocess) else transform_preprocess(given)


def _options_of(given: object, size: Size | None) -> PreprocessOptions:
    if given is None:
        return PreprocessOptions(crop=size)
    own = known_preprocess(given)
    return PreprocessOptions(crop=own.crop, whole=own)


def image_set(images: Any, limit: int, name: str) -> Path | InMemoryImages | None:
    """Images in any form as an image set; a data loader is read once, up to ``limit`` images.

    Raises:
        ImageSetError: they are in no form that is understood, or there are none.
    """
    if images is None or isinstance(images, InMemoryImages):
        return images
    if isinstance(images, str | Path):
        return Path(images)
    whole = _array(images)
    if whole is not None:
        return _in_memory([whole], [], name)
    if isinstance(images, Mapping) or _is_pair(images):
        images = [images]
    try:
        batches = iter(images)
    except TypeError:
        raise ImageSetError(
            f"the {name} are a {type(images).__name__}: pass a folder, an array, (images, labels) or a data loader"
        ) from None
    parts: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    count = 0
    for batch in batches:
        found, classes = _split(batch, name)
        found = found if found.ndim == 4 else found[None]
        parts.append(found)
        labels += [] if classes is None else [_labels(classes, len(found), name)]
        count += len(found)
        if count >= limit:
            break
    if 0 < len(labels) < len(parts):
        raise ImageSetError(
            f"{len(labels)} of {len(parts)} batches of the {name} have labels: label all of them, or none"
        )
    return _in_memory(parts, labels, name, limit)


def _is_pair(images: object) -> bool:
    """Whether these are ``(images, labels)``, and not two images."""
    return isinstance(images, tuple) and len(images) == 2 and len(getattr(images[0], "shape", ())) == 4


def _split(batch: Any, name: str) -> tuple[NDArray[Any], Any]:
    """Images and labels of what a data loader gives: a tensor, a pair, or a dictionary."""
    labels = None
    if isinstance(batch, Mapping):
        images = next((batch[key] for key in _IMAGES if key in batch), None)
        labels = next((batch[key] for key in _LABELS if key in batch), None)
    elif isinstance(batch, tuple | list):
        images, labels = (*batch, None, None)[:2]
    else:
        images = batch
    array = _array(images)
    if array is None or array.ndim not in (3, 4):
        raise ImageSetError(
            f"the {name} come as {type(batch).__name__} without images [N, C, H, W]: let the loader give "
            "(images, labels), or a dictionary with 'image' and 'label'"
        )
    return array, labels


def _array(images: Any) -> NDArray[Any] | None:
    """A tensor of any device, or an array, as an array; None for anything else."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
    if isinstance(images, np.ndarray):
        return images
    try:
        return np.asarray(images.numpy()) if hasattr(images, "numpy") else None
    except (TypeError, RuntimeError):  # sparse and quantized tensors
        return None


def _labels(given: Any, count: int, name: str) -> NDArray[np.int64]:
    """The class numbers of one batch of ``count`` images."""
    array = _array(given)
    labels = np.atleast_1d(np.asarray(given) if array is None else array)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ImageSetError(
            f"the labels of the {name} are {labels.dtype} {list(labels.shape)}: pass class numbers"
        )
    if len(labels) != count:
        raise ImageSetError(
            f"a batch of the {name} has {count} images and {len(labels)} labels: pass one label for each"
        )
    return labels.astype(np.int64)


def _in_memory(
    parts: list[NDArray[Any]], labels: list[NDArray[Any]], name: str, limit: int | None = None
) -> InMemoryImages:
    if not parts:
        raise ImageSetError(
            f"the {name} are none: pass a folder, an array or a data loader that is not empty"
        )
    shapes = list(dict.fromkeys(part.shape[1:] for part in parts))
    if len(shapes) > 1:
        raise ImageSetError(
            f"the {name} are of several sizes, {list(shapes[0])} and {list(shapes[1])}: pass images of the "
            "network's size, or a folder"
        )
    images = np.concatenate(parts)[:limit]
    images = images.astype(np.float32) if images.dtype.kind == "f" else images
    return InMemoryImages(images=images, labels=np.concatenate(labels)[:limit] if labels else None, name=name)
