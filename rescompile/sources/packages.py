"""Networks by name: timm's, torchvision's, folders of Hugging Face and timm, and functions in the user's own code."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibration.file_names import text_of
from rescompile.errors import CheckpointError, UsageError, did_you_mean, reason_of
from rescompile.manifest import OutputKind
from rescompile.optional import require
from rescompile.sources.checkpoint_entries import entry_of
from rescompile.sources.frozen_norms import USUAL, norm_epsilon
from rescompile.sources.modules import network_of
from rescompile.sources.network import SourceNetwork
from rescompile.sources.torch_file import read_payload
from rescompile.sources.transforms import hf_preprocess, timm_notes, timm_preprocess, transform_preprocess


@dataclass(frozen=True)
class _Asked:
    """The input's size and the inner outputs that the user asked for."""

    size: tuple[int, int] | None = None
    outputs: tuple[str, ...] = ()


WORDS = ("pretrained", "random")
"""Words that ``--weights`` takes instead of a file."""
_DETECTORS, _SEGMENTERS = "backbone.body.", "backbone."
"""Where torchvision's models keep their backbone; that of a segmenter is dilated instead of strided from stage 3 on."""
_PROBLEMS: dict[str, OutputKind] = {
    "single_label_classification": "classes",
    "multi_label_classification": "multilabel",
    "regression": "values",
}
"""Hugging Face's words for what a head means."""
_LARGEST_JSON = 1 << 24


def open_named(
    name: str,
    weights: str = "pretrained",
    *,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    outputs: tuple[str, ...] = (),
) -> SourceNetwork:
    """The network ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER`` or ``module:package.file:function``.

    ``weights`` is a file, ``pretrained`` (which the package downloads) or ``random``; ``size`` the input's height and
    width where it differs from the network's own. ``outputs`` are inner modules to return instead of its own answer.

    Raises:
        UsageError: the name is not known.
        CheckpointError: the weights cannot be read, or belong to another network.
        BackendUnavailable: the package is not installed.
    """
    scheme, _, rest = name.partition(":")
    if not rest:
        raise UsageError(f"--model {name} has no name behind the colon; such as timm:resnet50d.ra2_in1k")
    torch.manual_seed(seed)
    return _SCHEMES[scheme](rest, weights, _Asked(size, outputs))


def open_folder(folder: Path, asked: _Asked | None = None) -> SourceNetwork:
    """The network in a folder that timm or Hugging Face saved: ``config.json`` and weights.

    Raises:
        CheckpointError: the folder has no such files, or they do not fit together.
        BackendUnavailable: the package that knows the network is not installed.
    """
    asked = asked or _Asked()
    config = _json(folder / "config.json")
    if config is None:
        raise CheckpointError(f"{folder} has no config.json: pass a folder that timm or Hugging Face saved")
    weights = next(
        (folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()),
        None,
    )
    if weights is None:
        raise CheckpointError(
            f"{folder} has neither model.safetensors nor pytorch_model.bin: save the weights too"
        )
    if "architecture" in config:
        return _timm_folder(folder, config, weights, asked)
    return _transformers_folder(folder, config, weights, asked)


def _timm(name: str, weights: str, asked: _Asked) -> SourceNetwork:
    timm = _import("timm", f"--model timm:{name}")
    if Path(name).is_dir():
        return open_folder(Path(name), asked)
    if not timm.is_model(name.partition(".")[0]):
        hint = did_you_mean(name.partition(".")[0], timm.list_models())
        raise UsageError(f"timm has no network called {name}.{hint}")
    described = timm.get_pretrained_cfg(name) or {}
    loaded = None if weights in WORDS else _state_dict(Path(weights))
    options = _like(loaded, timm_fields(described)) if loaded else {}
    try:
        module = timm.create_model(name, pretrained=weights == "pretrained", **options)
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(
            f"timm cannot make {name} ({_first_line(error)}): check the name, and pass --weights FILE if the weights "
            "cannot be downloaded"
        ) from None
    if loaded:
        _load(module, loaded, weights, f"timm's {name}")
    cfg = timm_fields(module.pretrained_cfg)
    preprocess = timm_preprocess(cfg) if module.pretrained_cfg else None
    labels = cfg.get("label_names")
    return network_of(
        module,
        name=name.partition(".")[0],
        preprocess=preprocess,
        preprocess_from="timm's pretrained_cfg" if preprocess else None,
        class_names=tuple(map(str, labels)) if labels else None,
        size=asked.size,
        outputs=asked.outputs,
        origin=_origin(weights, f"timm:{name}"),
        notes=timm_notes(cfg),
    )


def timm_fields(described: object) -> dict[str, Any]:
    """A ``pretrained_cfg`` as a dictionary, an empty one as an empty one."""
    if isinstance(described, Mapping):
        return dict(described)
    return dict(described.to_dict()) if hasattr(described, "to_dict") else {}


def _like(loaded: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, int]:
    """The number of classes and of channels that weights have, by the layers that timm's cfg names."""
    head, stem = (cfg.get(key) for key in ("classifier", "first_conv"))
    found = {}
    if isinstance(head, str) and f"{head}.weight" in loaded:
        found["num_classes"] = loaded[f"{head}.weight"].shape[0]
    if isinstance(stem, str) and f"{stem}.weight" in loaded and loaded[f"{stem}.weight"].ndim == 4:
        found["in_chans"] = loaded[f"{stem}.weight"].shape[1]
    return found


def _timm_folder(folder: Path, config: dict[str, Any], weights: Path, asked: _Asked) -> SourceNetwork:
    timm = _import("timm", f"reading {folder}")
    name = str(config["architecture"])
    cfg = dict(config.get("pretrained_cfg") or config)
    arguments = config.get("model_args") or {}
    options = {"num_classes": config["num_classes"]} if isinstance(config.get("num_classes"), int) else {}
    if not timm.is_model(name):
        raise UsageError(f"{folder} holds timm's {text_of(name)}, which this version of timm does not know")
    loaded = _state_dict(weights)
    try:
        module = timm.create_model(name, pretrained=False, **{**options, **_like(loaded, cfg), **arguments})
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"timm cannot make the network of {folder} ({_first_line(error)})") from None
    _load(module, loaded, str(weights), f"timm's {name}")
    preprocess = timm_preprocess(cfg) if "input_size" in cfg else None
    labels = cfg.get("label_names") or config.get("label_names")
    return network_of(
        module,
        name=name,
        preprocess=preprocess,
        preprocess_from=f"{folder.name}/config.json" if preprocess else None,
        class_names=tuple(map(str, labels)) if labels else None,
        size=asked.size,
        outputs=asked.outputs,
        origin=text_of(weights.name),
        notes=timm_notes(cfg) if preprocess else (),
    )


def _torchvision(name: str, weights: str, asked: _Asked) -> SourceNetwork:
    models = _import("torchvision.models", f"--model torchvision:{name}")
    name, _, version = name.partition(".")
    published = _published(models, name, version, newest=weights == "pretrained")
    own = None if weights in WORDS else _own_weights(weights, asked)
    options = own.options if own else {}
    try:
        module = models.get_model(name, weights=published if weights == "pretrained" else None, **options)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"torchvision cannot fetch {name} ({_first_line(error)}): pass --weights FILE"
        ) from None
    if own:
        own.install(module, weights, name)
    labels = published.meta.get("categories") if options.get("num_classes", 1000) == 1000 else None
    return network_of(
        module,
        name=name,
        preprocess=transform_preprocess(published.transforms()),
        preprocess_from=f"torchvision's {published}",
        class_names=tuple(labels) if labels else None,
        size=asked.size,
        outputs=asked.outputs,
        origin=_origin(weights, f"torchvision:{name}"),
        notes=(f"its frozen batch norms have the epsilon {own.epsilon:g}, as in torchvision",)
        if own and own.epsilon != USUAL
        else (),
    )


def _published(models: Any, name: str, version: str, *, newest: bool) -> Any:
    """Torchvision's weights of ``version``; without one the newest, or the first."""
    if name not in models.list_models(module=models):
        if name in models.list_models():
            raise UsageError(
                f"torchvision's {name} is not a classifier: build the backbone of a detector or segmenter with --model "
                "torchvision:resnet50 (or its own), --weights FILE and --outputs c2,c3,c4,c5, or another network from "
                "its live module with rescompile.build"
            )
        hint = did_you_mean(name, models.list_models(module=models))
        raise UsageError(f"torchvision has no classifier called {name}.{hint}")
    known = models.get_model_weights(name)
    if version and version not in known.__members__:
        raise UsageError(
            f"torchvision has no weights {version} of {name}; it has {', '.join(known.__members__)}"
        )
    return known[version] if version else known.DEFAULT if newest else next(iter(known))


@dataclass(frozen=True)
class _OwnWeights:
    """A file's state_dict for a classifier of torchvision, or for the backbone of a detector or segmenter."""

    tensors: Mapping[str, Tensor]
    is_backbone: bool = False
    is_dilated: bool = False
    epsilon: float = USUAL
    """The epsilon of its batch norms."""

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the module that these weights fit."""
        rows = self.tensors.get("fc.weight")
        options: dict[str, Any] = {} if rows is None else {"num_classes": rows.shape[0]}
        return options | ({"replace_stride_with_dilation": [False, True, True]} if self.is_dilated else {})

    def install(self, module: nn.Module, path: str, name: str) -> None:
        """Load these weights of ``path`` into ``module``, torchvision's ``name``."""
        if self.is_backbone:
            module.fc = nn.Identity()  # a backbone's file has no classifier
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eps = self.epsilon
        _load(module, self.tensors, path, f"torchvision's {name}")


def _own_weights(path: str, asked: _Asked) -> _OwnWeights:
    loaded = _state_dict(Path(path))
    if not any(key.startswith(_SEGMENTERS) for key in loaded):
        return _OwnWeights(loaded)
    if not asked.outputs:
        raise UsageError(
            f"{path} holds a detector or segmenter: pass --outputs c2,c3,c4,c5 to build its backbone"
        )
    is_dilated = not any(key.startswith(_DETECTORS) for key in loaded)
    backbone = _backbone(loaded)
    return _OwnWeights(
        _with_counters(backbone), is_backbone=True, is_dilated=is_dilated,
        epsilon=norm_epsilon(backbone, Path(path)),
    )  # fmt: skip


def _backbone(loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ResNet in a checkpoint of torchvision's detectors and segmenters."""
    body = _DETECTORS if any(key.startswith(_DETECTORS) for key in loaded) else _SEGMENTERS
    return {key.removeprefix(body): tensor for key, tensor in loaded.items() if key.startswith(body)}


def _with_counters(loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``loaded`` with the numbers of batches that frozen norms do not count."""
    means = [key for key in loaded if key.endswith("running_mean")]
    counters = {key.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for key in means}
    return {**counters, **loaded}


def _transformers_folder(folder: Path, config: dict[str, Any], weights: Path, asked: _Asked) -> SourceNetwork:
    transformers = _import("transformers", f"reading {folder}")
    try:
        module = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read by transformers ({_first_line(error)})") from None
    described = _json(folder / "preprocessor_config.json")
    preprocess = hf_preprocess(described) if described else None
    names = config.get("id2label")
    found = network_of(
        module,
        name=str(config.get("model_type", "hf")),
        preprocess=preprocess,
        preprocess_from=f"{folder.name}/preprocessor_config.json" if preprocess else None,
        class_names=_labels(names) if isinstance(names, dict) else None,
        size=asked.size,
        outputs=asked.outputs,
        origin=text_of(weights.name),
    )
    kind = None if asked.outputs else _PROBLEMS.get(str(config.get("problem_type")))
    return replace(found, kind=kind, kind_from=f"{folder.name}/config.json")


def _labels(names: dict[str, Any]) -> tuple[str, ...] | None:
    """Hugging Face's ``id2label`` in order; None where it only numbers the classes."""
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    return None if all(label == f"LABEL_{number}" for number, label in enumerate(ordered)) else tuple(ordered)


def _hf(name: str, weights: str, asked: _Asked) -> SourceNetwork:
    if not Path(name).is_dir():
        raise UsageError(f"--model hf:{name} is not a folder; download the model first (hf download {name})")
    if weights != "pretrained":
        raise UsageError(f"--model hf:{name} brings its own weights; leave --weights out")
    return open_folder(Path(name), asked)


def _module(name: str, weights: str, asked: _Asked) -> SourceNetwork:
    """``package.file:function``: the user asked for this code, so it is imported and called."""
    place, _, function = name.partition(":")
    if not function:
        raise UsageError(f"--model module:{name} names no function; write module:package.file:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        make: object = getattr(importlib.import_module(place), function)
        if not callable(make):
            raise UsageError(
                f"{name} is a {type(make).__name__}; it must be a function that returns a torch.nn.Module"
            )
        module = make()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--model module:{name} cannot be imported ({error}); run in the folder that holds it"
        ) from None
    except AttributeError as error:
        raise UsageError(f"--model module:{name} fails ({error}); check the function's name") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name} returns a {type(module).__name__}; it must return a torch.nn.Module")
    if weights not in WORDS:
        _load(module, _state_dict(Path(weights)), weights, name)
    return network_of(
        module, size=asked.size, outputs=asked.outputs, origin=_origin(weights, f"module:{name}")
    )


_SCHEMES: dict[str, Callable[[str, str, _Asked], SourceNetwork]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hf,
    "module": _module,
}


_TORCH_LINE = "such as `uv pip install --reinstall --torch-backend cpu torch torchvision`"


def _import(module: str, purpose: str) -> Any:
    """Import an optional package; torchvision fails oddly where it was built for another torch."""
    try:
        return require(module, purpose)
    except (RuntimeError, AttributeError) as error:
        raise UsageError(
            f"{purpose} needs torchvision, and the installed one was built for another torch than {torch.__version__} "
            f"({_first_line(error)}): install both from one index, {_TORCH_LINE}"
        ) from None


def _state_dict(path: Path) -> dict[str, Tensor]:
    found = entry_of(read_payload(path), path).tensors
    prefix = "module."
    shared = all(name.startswith(prefix) for name in found)
    return {name.removeprefix(prefix) if shared else name: tensor for name, tensor in found.items()}


def _load(module: nn.Module, loaded: Mapping[str, Tensor], path: str, network: str) -> None:
    try:
        module.load_state_dict(dict(loaded), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointError(
            f"{path} does not fit {network} ({' '.join(lines)[:300]}): pass its own weights"
        ) from None


def _origin(weights: str, name: str) -> str:
    return text_of(Path(weights).name) if weights not in WORDS else f"{name}, {weights}"


def _json(path: Path) -> dict[str, Any] | None:
    """An object in a JSON file; None where there is no such file."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path} is too large for a configuration: pass the folder that was saved")
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)}): save the folder again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a configuration: save the folder again")
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
