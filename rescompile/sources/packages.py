"""Networks by name: timm's, torchvision's, folders of Hugging Face and timm, and functions in the user's own code."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calibration.file_names import text_of
from rescompile.errors import CheckpointError, UsageError, did_you_mean, reason_of
from rescompile.manifest import OutputKind
from rescompile.optional import require
from rescompile.sources.checkpoint import has_task_head
from rescompile.sources.fitting import OwnWeights, load_into, read_own_weights, weights_for
from rescompile.sources.frozen_norms import USUAL, norm_epsilon
from rescompile.sources.hub import unreachable_hub
from rescompile.sources.modules import network_of
from rescompile.sources.network import SourceNetwork
from rescompile.sources.sharded import SUFFIX
from rescompile.sources.transforms import hf_preprocess, timm_notes, timm_preprocess, transform_preprocess
from rescompile.sources.users_code import first_line, place_of


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
    one = ("model.safetensors", "pytorch_model.bin")
    files = (folder / name for name in (*one, *(f"{name}{SUFFIX}" for name in one)))
    weights = next((path for path in files if path.is_file()), None)
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
    try:
        described = timm.get_pretrained_cfg(name) or {}
    except RuntimeError as error:
        raise UsageError(f"timm has no weights called {name} ({first_line(error)})") from None
    own = None if weights in WORDS else read_own_weights(weights)
    fields = timm_fields(described)
    options: dict[str, Any] = _like(own.bare, fields) if own else {}
    if asked.size is not None and fields.get("fixed_input_size"):
        options["img_size"] = asked.size
    module = _create(timm, name, weights, options)
    notes = load_into(module, own, f"timm's {name}") if own else ()
    if weights == "random":
        _fill_zeros(module)
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
        notes=(*notes, *timm_notes(cfg)),
    )


def _create(timm: Any, name: str, weights: str, options: Mapping[str, Any]) -> nn.Module:
    """timm's network, with its published weights where they are asked for."""
    with unreachable_hub() if weights == "pretrained" else nullcontext() as unreachable:
        try:
            found: nn.Module = timm.create_model(name, pretrained=weights == "pretrained", **options)
        except (RuntimeError, OSError, ValueError) as error:
            if unreachable:
                raise CheckpointError(
                    f"the weights of timm:{name} are not on this machine and cannot be fetched ({unreachable}): run it "
                    "where there is a network, or pass --weights FILE"
                ) from None
            raise CheckpointError(
                f"timm cannot make {name} ({first_line(error)}): check the name, and pass --weights FILE if the "
                "weights cannot be downloaded"
            ) from None
    return found


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
    own = read_own_weights(str(weights))
    try:
        module = timm.create_model(name, pretrained=False, **{**options, **_like(own.bare, cfg), **arguments})
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"timm cannot make the network of {folder} ({first_line(error)})") from None
    notes = load_into(module, own, f"timm's {name}")
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
        notes=(*notes, *(timm_notes(cfg) if preprocess else ())),
    )


def _torchvision(name: str, weights: str, asked: _Asked) -> SourceNetwork:
    models = _import("torchvision.models", f"--model torchvision:{name}")
    name, _, version = name.partition(".")
    published = _published(models, name, version, newest=weights == "pretrained")
    own = None if weights in WORDS else _for_torchvision(weights, asked)
    options = own.options(models, name) if own else {}
    try:
        module = models.get_model(name, weights=published if weights == "pretrained" else None, **options)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"torchvision cannot fetch {name} ({first_line(error)}): pass --weights FILE"
        ) from None
    notes = own.install(module, name) if own else ()
    if weights == "random":
        _fill_zeros(module)
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
        notes=notes,
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
class _TorchvisionWeights:
    """A file's weights for a classifier of torchvision, or for the backbone of a detector or segmenter."""

    own: OwnWeights
    is_backbone: bool = False
    is_dilated: bool = False
    epsilon: float = USUAL
    """The epsilon of its batch norms."""

    def options(self, models: Any, name: str) -> dict[str, Any]:
        """Arguments of torchvision's ``name`` that these weights fit."""
        if self.is_backbone:
            return {"replace_stride_with_dilation": [False, True, True]} if self.is_dilated else {}
        usual = _with_usual_weights(models, name)
        found, expected = weights_for(usual, self.own, f"torchvision's {name}"), usual.state_dict()
        return _classes_of(found, expected) | _inception_options(found, expected)

    def install(self, module: nn.Module, name: str) -> tuple[str, ...]:
        """Load these weights into ``module``, torchvision's ``name``; sentences for the user."""
        if self.is_backbone:
            module.fc = nn.Identity()  # a backbone's file has no classifier
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eps = self.epsilon
        notes = load_into(module, self.own, f"torchvision's {name}")
        if hasattr(module, "transform_input"):
            known = "published" if module.transform_input else "no published"
            notes += (
                f"{name} is built with transform_input={module.transform_input}, as networks that began from {known} "
                "weights are trained; if yours was not, pass the live module",
            )
        if self.epsilon == USUAL:
            return notes
        return (*notes, f"its frozen batch norms have the epsilon {self.epsilon:g}, as in torchvision")


def _with_usual_weights(models: Any, name: str) -> nn.Module:
    """torchvision's ``name`` for 1,000 classes, without values where it can be made so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the time that initial weights take
        try:
            with torch.device("meta"):
                made: nn.Module = models.get_model(name, weights=None)
        except NotImplementedError:  # it computes sizes with tensors
            made = models.get_model(name, weights=None)
    return made


def _classes_of(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of classes, where ``found`` differ from the ``expected`` weights in the rows of classifiers alone."""
    rows = {
        found[name].shape[0]
        for name, usual in expected.items()
        if name in found and usual.ndim and found[name].ndim == usual.ndim
        and found[name].shape != usual.shape and found[name].shape[1:] == usual.shape[1:]
    }  # fmt: skip
    return {"num_classes": rows.pop()} if len(rows) == 1 else {}


def _inception_options(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, bool]:
    """What GoogLeNet's and Inception's weights say: published ones come without heads for training, and their network
    normalizes once more."""
    heads = ("aux1.", "AuxLogits.")
    if not any(name.startswith(heads) for name in expected):
        return {}
    trained_so = any(name.startswith(heads) for name in found)
    return {"aux_logits": trained_so, "transform_input": not trained_so, "init_weights": False}


def _for_torchvision(path: str, asked: _Asked) -> _TorchvisionWeights:
    own = read_own_weights(path)
    is_part = any(key.startswith(_SEGMENTERS) for key in own.bare)
    if not is_part or not (asked.outputs or has_task_head(own.bare)):
        return _TorchvisionWeights(own)
    if not asked.outputs:
        raise UsageError(
            f"{path} holds a detector or segmenter: pass --outputs c2,c3,c4,c5 to build its backbone"
        )
    is_dilated = not any(key.startswith(_DETECTORS) for key in own.bare)
    backbone = _backbone(own.bare)
    return _TorchvisionWeights(
        replace(own, tensors=backbone), is_backbone=True, is_dilated=is_dilated,
        epsilon=norm_epsilon(backbone, Path(path)),
    )  # fmt: skip


def _backbone(loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ResNet in a checkpoint of torchvision's detectors and segmenters."""
    body = _DETECTORS if any(key.startswith(_DETECTORS) for key in loaded) else _SEGMENTERS
    return {key.removeprefix(body): tensor for key, tensor in loaded.items() if key.startswith(body)}


def _transformers_folder(folder: Path, config: dict[str, Any], weights: Path, asked: _Asked) -> SourceNetwork:
    transformers = _import("transformers", f"reading {folder}")
    try:
        module = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder} cannot be read by transformers ({first_line(error)})") from None
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
        raise UsageError(
            f"--model hf:{name} is not a folder; download the model first "
            f"(hf download {name} --local-dir FOLDER) and pass that folder"
        )
    if weights != "pretrained":
        raise UsageError(f"--model hf:{name} brings its own weights; leave --weights out")
    return open_folder(Path(name), asked)


def _module(name: str, weights: str, asked: _Asked) -> SourceNetwork:
    """``package.file:function``: the user asked for this code, so it is imported and called."""
    module = _made(name)
    notes = load_into(module, read_own_weights(weights), name) if weights not in WORDS else ()
    return network_of(
        module,
        size=asked.size,
        outputs=asked.outputs,
        origin=_origin(weights, f"module:{name}"),
        notes=notes,
    )


def _made(name: str) -> nn.Module:
    """What the function ``package.file:function`` in the user's own code returns."""
    place, _, function = name.partition(":")
    if not function:
        raise UsageError(f"--model module:{name} names no function; write module:package.file:function")
    if place.endswith(".py") or "/" in place:
        dotted = place.removesuffix(".py").strip("./").replace("/", ".")
        raise UsageError(f"--model module:{name} names a file; write module:{dotted}:{function}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        make: Any = getattr(importlib.import_module(place), function)
        module = make() if callable(make) and not isinstance(make, nn.Module) else make
    except ModuleNotFoundError as error:
        own = place == error.name or place.startswith(f"{error.name}.")
        raise UsageError(
            f"--model module:{name} cannot be imported ({error}); "
            + ("run in the folder that holds it" if own else f"install {error.name}")
        ) from None
    except Exception as error:
        # code of the user's may raise anything
        known = not isinstance(error, AttributeError) or place_of(error)
        hint = "run it by itself, without arguments" if known else "check the function's name"
        raise UsageError(
            f"--model module:{name} fails ({type(error).__name__}: {first_line(error)}{place_of(error)}); {hint}"
        ) from None
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(module, nn.Module):
        gives = "returns" if callable(make) else "is"
        raise UsageError(f"{name} {gives} a {type(module).__name__}; it must return a torch.nn.Module")
    return module


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
            f"({first_line(error)}): install both from one index, {_TORCH_LINE}"
        ) from None


def _fill_zeros(module: nn.Module) -> None:
    """Random weights for the classifiers that a package fills with zeros before training: they would answer zeros."""
    for part in module.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.02)


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
