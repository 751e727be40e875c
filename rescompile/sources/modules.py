"""A live PyTorch module as the network to build: it is exported once, and the graph is checked against it.

The module is copied first: the user's stays in its mode, on its device and in its type.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import swa_utils

from calibration.file_names import text_of
from calibration.preprocess import Preprocess
from rescompile.errors import UsageError
from rescompile.manifest import CheckpointRef
from rescompile.sources.checkpoint import check_values
from rescompile.sources.module_export import export
from rescompile.sources.network import Reference, SourceNetwork
from rescompile.sources.preprocess_options import PreprocessOptions
from rescompile.sources.transforms import timm_preprocess
from rescompile.sources.users_code import first_line
from rescompile.wording import listing

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
    inner = _unwrapped(module)
    _check_module(inner, origin or f"module {type(inner).__name__}")
    inner = _copied(inner)
    described = getattr(inner, "pretrained_cfg", None)
    if preprocess is None and described:
        preprocess = timm_preprocess(described)
        preprocess_from = "timm's pretrained_cfg" if preprocess else None
    called = name or str(
        getattr(inner, "default_cfg", {}).get("architecture") or type(inner).__name__.lower()
    )
    channels = _channels(inner)
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


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network in the wrappers of parallel training, of averaged weights and of torch.compile."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, swa_utils.AveragedModel)
    while True:
        if isinstance(module, wrappers):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled
        else:
            return module


def _copied(module: nn.Module) -> nn.Module:
    """A copy of ``module`` on the CPU, in float32 and eval mode, whose weights are parameters alone.

    Weight norm and pruning keep tensors that were computed from parameters, which PyTorch does not copy.
    """
    computed = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in computed}
    try:
        return _with_plain_weights(copy.deepcopy(module, memo).to("cpu", torch.float32).eval())
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise UsageError(
            f"the network {type(module).__name__} cannot be copied and put into eval mode ({first_line(error)}); "
            "export it to ONNX and pass that file"
        ) from None


def _with_plain_weights(module: nn.Module) -> nn.Module:
    """``module`` with the weights that its parametrizations compute, such as weight norm, as exporters take them."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            names: Any = part.parametrizations
            values = {name: getattr(part, name).detach() for name in names}
            # not parametrize.remove_parametrizations: the user's own module has the same class, which that changes
            part.__class__ = type(part).__mro__[1]
            del part.parametrizations
            for name, value in values.items():
                part.register_parameter(name, nn.Parameter(value))
    return module


def reference_of(module: nn.Module) -> Reference:
    """The first answer of ``module`` to images [N, C, H, W]."""

    def answer(images: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            found = module(torch.from_numpy(np.ascontiguousarray(images, np.float32)))
        first: Tensor = found if isinstance(found, Tensor) else found[0]
        return first.numpy()

    return answer


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
            return answer[:, None] if answer.ndim == 1 else answer
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
        parts = answer if isinstance(answer, tuple | list) else ()
        found_parts = tuple(part for part in parts if isinstance(part, Tensor))
        if not found_parts:
            raise TypeError(f"its answer is a {type(answer).__name__} without tensors")
        if any(isinstance(part, tuple | list | Mapping) and part for part in parts):
            self.note = "of the module's answers only the tensors are built, not the collections beside them"
        return found_parts


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


def _channels(module: nn.Module) -> int:
    layers = (part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))
    # in traced modules and in user's own layers, weights of convolutions are parameters alone
    weights = (weight.shape[1] for weight in module.parameters() if weight.ndim == 4)
    channels: int | None = next(iter((*layers, *weights)), None)
    if channels is None:
        raise UsageError(f"{type(module).__name__} has no convolution; pass a network that reads images")
    return channels


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
