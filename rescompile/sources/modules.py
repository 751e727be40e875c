"""A live PyTorch module as the network to build: it is exported once, and the graph is checked against it.

The module is copied first: the user's stays in its mode, on its device and in its type.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.file_names import text_of
from calibration.preprocess import Preprocess
from rescompile.errors import GraphError, UsageError
from rescompile.manifest import CheckpointRef
from rescompile.optional import installed
from rescompile.sources.checkpoint import check_values
from rescompile.sources.network import Reference, SourceNetwork
from rescompile.sources.preprocess_options import PreprocessOptions
from rescompile.sources.transforms import timm_preprocess
from rescompile.wording import listing

_OPSET = 18
STAGES = {f"c{number}": f"layer{number - 1}" for number in range(2, 6)}
"""The usual names of a ResNet's stages, by their stride: c2 is a quarter of the image."""
_PREFERRED = ("logits", "out")
"""Entries of an answer that are the network's own: transformers' and torchvision's."""


def network_of(
    module: nn.Module,
    *,
    name: str | None = None,
    preprocess: Preprocess | None = None,
    preprocess_from: str | None = None,
    class_names: tuple[str, ...] | None = None,
    size: tuple[int, int] | None = None,
    origin: str | None = None,
    notes: tuple[str, ...] = (),
    outputs: tuple[str, ...] = (),
) -> SourceNetwork:
    """``module`` as a network: its graph, and itself as the reference.

    ``preprocess`` may come with the module (timm's). ``size`` is the input's height and width where nothing else says
    it. ``origin`` names the file of the weights. ``outputs`` are inner modules whose answers are returned in place of
    the network's own: ``c2`` to ``c5`` are a ResNet's stages, other names are PyTorch's, such as ``layer3.5``.

    Raises:
        UsageError: nothing says the size of the input, or the module is not a whole one in plain PyTorch.
        CheckpointError: a weight is NaN or infinite, or a variance is negative.
        GraphError: PyTorch cannot export the module.
    """
    inner = (
        module.module if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) else module
    )
    _check_module(inner, origin or f"module {type(inner).__name__}")
    inner = copy.deepcopy(inner).to("cpu", torch.float32).eval()
    described = getattr(inner, "pretrained_cfg", None)
    if preprocess is None and described:
        preprocess = timm_preprocess(described)
        preprocess_from = "timm's pretrained_cfg" if preprocess else None
    called = name or str(
        getattr(inner, "default_cfg", {}).get("architecture") or type(inner).__name__.lower()
    )
    channels = _channels(inner, preprocess)
    size = size or (preprocess.size if preprocess else None)
    if preprocess is not None and size is not None:
        # the same proportion of a photograph in another size
        asked = size[0] if size[0] == size[1] else size
        preprocess = PreprocessOptions(crop=asked).apply(preprocess, channels=preprocess.channels)
    if size is None:
        raise UsageError(
            f"nothing says the size of {called}'s images; pass its preprocessing, or --crop (size= in Python)"
        )
    if outputs:
        inner = _Features(inner, outputs)
    plain = _PlainAnswer(inner).eval()  # exporters put back the mode of the outermost module
    graph = export(plain, (channels, *size), called, plain.names)
    return SourceNetwork(
        graph=graph,
        name=text_of(called),
        checkpoint=CheckpointRef(_sha256(inner), origin or f"module {type(inner).__name__}"),
        preprocess=preprocess,
        preprocess_from=preprocess_from,
        class_names=class_names,
        notes=(*notes, *((plain.note,) if plain.note else ())),
        reference=reference_of(plain),
    )


def reference_of(module: nn.Module) -> Reference:
    """The first answer of ``module`` to images [N, C, H, W]."""

    def answer(images: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            found = module(torch.from_numpy(np.ascontiguousarray(images, np.float32)))
        first: Tensor = found if isinstance(found, Tensor) else found[0]
        return first.numpy()

    return answer


def export(
    module: nn.Module, shape: tuple[int, ...], name: str, outputs: list[str] | None = None
) -> onnx.ModelProto:
    """``module`` in eval mode as an ONNX graph with a free batch, for images of ``shape`` (C, H, W).

    ``outputs`` are names of its answers, which its first run may fill in.

    Raises:
        GraphError: the module does not run, or neither of PyTorch's exporters takes it.
    """
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module(images)
        except Exception as error:
            # a module of the user's may raise anything
            raise GraphError(
                f"{name} does not run on images {list(images.shape)} ({_first_line(error)}); check its input size"
            ) from error
    exporters = (_dynamo, _torchscript) if installed("onnxscript") else (_torchscript,)
    failures = []
    for exporter in exporters:
        try:
            with warnings.catch_warnings(), _quiet():
                warnings.simplefilter("ignore")
                return exporter(module, images, outputs or None)
        except Exception as error:
            # what an exporter refuses, it says by any exception
            failures.append(_first_line(error))
    raise GraphError(
        f"{name} cannot be exported to ONNX ({'; '.join(failures)}); export it yourself and pass --onnx"
    )


def _dynamo(module: nn.Module, images: Tensor, outputs: list[str] | None) -> onnx.ModelProto:
    program = torch.onnx.export(
        module, (images,), dynamo=True, verbose=False, opset_version=_OPSET,
        dynamic_shapes=({0: torch.export.Dim("N")},), output_names=outputs,
    )  # fmt: skip
    assert program is not None
    return program.model_proto


def _torchscript(module: nn.Module, images: Tensor, outputs: list[str] | None) -> onnx.ModelProto:
    buffer: Any = io.BytesIO()
    with torch.inference_mode():
        torch.onnx.export(
            module, (images,), buffer, dynamo=False, opset_version=17, input_names=["image"],
            dynamic_axes={"image": {0: "N"}}, output_names=outputs,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


class _quiet:  # noqa: N801 - used as a function
    """Keeps the exporters' log messages away from the user, who gets one sentence."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._before)


class _PlainAnswer(nn.Module):
    """A module whose answer is one tensor or a tuple of tensors, whatever the inner one returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.note: str | None = None
        self.names: list[str] = []
        """The answers' names, where the inner module gives names."""

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The answer to a batch of images."""
        answer = self.inner(image)
        if isinstance(answer, Tensor):
            return answer
        if isinstance(answer, Mapping):
            for entry in _PREFERRED:
                if isinstance(answer.get(entry), Tensor):
                    if len(answer) > 1:
                        others = ", ".join(str(key) for key in answer if key != entry)
                        self.note = f"of the module's answers only '{entry}' is built, not {others}"
                    found: Tensor = answer[entry]
                    return found
            self.names[:] = [str(key) for key, part in answer.items() if isinstance(part, Tensor)]
            answer = tuple(answer.values())
        return tuple(part for part in answer if isinstance(part, Tensor))


class _Features(nn.Module):
    """A module that returns what inner modules of it answer."""

    def __init__(self, inner: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.inner = inner
        self._found: dict[str, Tensor] = {}
        self._outputs = outputs
        known = dict(inner.named_modules())
        for output in outputs:
            place = STAGES.get(output, output)
            if place not in known or not place:
                stages = [name for name in known if name.count(".") <= 1 and name.startswith("layer")]
                others = stages or [name for name in known if name and "." not in name]
                raise UsageError(
                    f"the network has no module {output if output == place else f'{output} ({place})'} to return; "
                    f"name {'c2 to c5 or ' * bool(stages)}{listing(others, 6)}"
                )
            known[place].register_forward_hook(partial(self._keep, output))

    def _keep(self, output: str, module: nn.Module, inputs: object, answer: Tensor) -> None:
        self._found[output] = answer

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """The answers by the names that were asked for."""
        self.inner(image)
        return {output: self._found[output] for output in self._outputs}


def _channels(module: nn.Module, preprocess: Preprocess | None) -> int:
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None:
        raise UsageError(f"{type(module).__name__} has no convolution; pass a network that reads images")
    if preprocess is not None and preprocess.channels != first.in_channels:
        raise UsageError(
            f"{type(module).__name__} takes {first.in_channels} channels, its preprocessing makes "
            f"{preprocess.channels}; pass a preprocessing for {first.in_channels}"
        )
    return first.in_channels


def _check_module(module: nn.Module, source: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            "the network is TorchScript, whose structure cannot be read; pass the module that it was made of"
        )
    weights = dict(module.named_parameters()) | {
        # other buffers may be infinite, as masks are
        name: buffer for name, buffer in module.named_buffers() if name.endswith(("running_mean", "running_var"))
    }  # fmt: skip
    for name, tensor in weights.items():
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise UsageError(
                f"{source}: {name} has no values yet (lazy, or on the meta device); load "
                "or initialize the weights first"
            )
    with torch.inference_mode():
        check_values(weights, source)


def _sha256(module: nn.Module) -> str:
    """Hash of the weights: names and values, in order."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(name.encode() + b"\0" + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
