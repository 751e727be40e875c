"""Each tool on one ONNX file: built or why not, and what its INT8 model answers and executes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.coverage.networks import answers
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino.compile import compile_model
from rescompile.metrics import relative_rms

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 900


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One tool on one network."""

    contender: str
    failed: str | None = None
    """The tool's last line where it made no model."""
    agreement: float | None = None
    relative_rms: float | None = None
    adds: int | None = None
    adds_fused: int | None = None
    """Additions of two computed tensors that a convolution executes with itself, where the runtime tells."""
    int8_share: float | None = None
    """Share of the convolutions and fully connected layers that run as INT8."""
    seconds: float | None = None


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """The same images for every tool."""

    calibration: Path
    """npz with float32 ``images`` [N, 3, H, W], for the peers."""
    pixels: Path
    """npz with the same as uint8 [N, H, W, 3], for ours."""
    validation: NDArray[np.float32]
    size: int


def ours(network: Path, images: Images, expected: NDArray[np.float32], folder: Path) -> Result:
    """``rescompile build`` for OpenVINO, as a user calls it."""
    output = folder / "engine"
    words = [
        "-m", "rescompile", "build", "--onnx", str(network), "--precision", "int8", "--backend", "openvino",
        "--calibration-set", str(images.pixels), "--resize", "0", "--crop", str(images.size),
        "--max-relative-rms", "1e6", "--output", str(output), "--force",
    ]  # fmt: skip
    seconds, failure = _run(words)
    if failure is not None:
        return Result(contender="rescompile", failed=failure)
    report = json.loads((output / "report.json").read_text())
    fused = report["fused"] or {"fused": None, "of": None}
    compiled = compile_model(output / "model.xml", tuned=False)
    return msgspec.structs.replace(
        _compared("rescompile", _openvino(compiled), images, expected),
        adds=fused["of"], adds_fused=fused["fused"], int8_share=_int8_share(compiled), seconds=seconds,
    )  # fmt: skip


def nncf(network: Path, images: Images, expected: NDArray[np.float32], folder: Path) -> Result:
    """NNCF's performance preset, executed by OpenVINO."""
    output = folder / "nncf.xml"
    seconds, failure = _run(
        ["-m", "benchmarks.quantizers", "nncf", str(network), str(images.calibration), str(output)]
    )
    if failure is not None:
        return Result(contender="NNCF", failed=failure)
    compiled = compile_model(output, tuned=False)
    fused, adds = _fused_adds(network, compiled)
    return msgspec.structs.replace(
        _compared("NNCF", _openvino(compiled), images, expected),
        adds=adds, adds_fused=fused, int8_share=_int8_share(compiled), seconds=seconds,
    )  # fmt: skip


def onnxruntime(network: Path, images: Images, expected: NDArray[np.float32], folder: Path) -> Result:
    """ONNX Runtime's static quantization with min-max, executed by ONNX Runtime."""
    output = folder / "onnxruntime.onnx"
    seconds, failure = _run(
        ["-m", "benchmarks.quantizers", "onnxruntime", str(network), str(images.calibration), str(output)]
    )
    if failure is not None:
        return Result(contender="ONNX Runtime", failed=failure)
    result = _compared("ONNX Runtime", reference_session(output, optimize=False), images, expected)
    return msgspec.structs.replace(result, int8_share=_int8_weights(onnx.load(output)), seconds=seconds)


CONTENDERS: tuple[Callable[[Path, Images, NDArray[np.float32], Path], Result], ...] = (
    ours,
    nncf,
    onnxruntime,
)


def _run(words: list[str]) -> tuple[float, str | None]:
    """Seconds of a Python command, and the last line of its errors if it failed or its verdict did."""
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            capture_output=True,
            check=False,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return LIMIT_SECONDS, f"not ready after {LIMIT_SECONDS} s"
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        return time.perf_counter() - began, lines[-1][:300] if lines else f"exit code {done.returncode}"
    return time.perf_counter() - began, None


def _openvino(compiled: Any) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    return lambda images: np.array(compiled([images])[0], np.float32)


def _compared(
    name: str, run: Callable[[NDArray[Any]], NDArray[Any]], images: Images, expected: NDArray[np.float32]
) -> Result:
    found = answers(run, images.validation)
    return Result(
        contender=name,
        agreement=float((found.argmax(1) == expected.argmax(1)).mean()),
        relative_rms=relative_rms(expected, found),
    )


def _layers(compiled: Any) -> Iterable[dict[str, str]]:
    for node in compiled.get_runtime_model().get_ordered_ops():
        yield {key: str(value.value) for key, value in node.get_rt_info().items()}


def _int8_share(compiled: Any) -> float:
    weighted = [
        layer for layer in _layers(compiled) if layer["layerType"] in {"Convolution", "FullyConnected"}
    ]
    return sum(layer["runtimePrecision"] in {"u8", "i8"} for layer in weighted) / max(1, len(weighted))


def _fused_adds(network: Path, compiled: Any) -> tuple[int, int]:
    """Additions of two computed tensors that run inside of a convolution, and all of them."""
    graph = onnx.load(network, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    adds = {node.name for node in graph.node if node.op_type == "Add" and not constants & set(node.input)}
    inside = {
        name
        for layer in _layers(compiled)
        if layer["layerType"] in {"Convolution", "FullyConnected"}
        for name in layer["originalLayersNames"].split(",")
    }
    return len(adds & inside), len(adds)


def _int8_weights(model: onnx.ModelProto) -> float:
    """Share of the convolutions and products whose both inputs come from DequantizeLinear."""
    restored = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    weighted = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    return sum(set(node.input[:2]) <= restored for node in weighted) / max(1, len(weighted))
