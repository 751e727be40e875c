"""A PyTorch module as an ONNX graph, by whichever of PyTorch's exporters takes it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from rescompile.errors import GraphError
from rescompile.optional import installed
from rescompile.sources.users_code import causes, first_line, place_of

_OPSET = 18
_BY_VALUES = "GuardOnDataDependentSymNode"
"""PyTorch's exception where a network's own code asks for a value that depends on the images."""


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
                f"{name} does not run on images {list(images.shape)} ({first_line(error)}{place_of(error)}); it must "
                "take any number of float images of its size, and nothing else"
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
            if any(type(cause).__name__ == _BY_VALUES for cause in causes(error)):
                raise GraphError(
                    f"{name} decides by the values of its images what it computes{place_of(error)}, while an engine "
                    "computes the same for all: take that out, or export the part without it to ONNX"
                ) from None
            failures.append(first_line(error))
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what exporters log and print away from the user, who gets one sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    # it writes whole graphs to the process's own stdout, where --json puts its answer
    inner: Any = torch._C
    log = getattr(inner, "_jit_onnx_log", None)
    inner._jit_onnx_log = lambda *_: None
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        inner._jit_onnx_log = log
