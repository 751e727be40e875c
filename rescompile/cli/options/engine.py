"""The engine to build."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from rescompile.cli.options.shared import option

_engine = partial(option, "Engine")
_verdict = partial(option, "Verdict")


@dataclass(frozen=True)
class EngineOptions:
    """The engine to build."""

    precision: Annotated[Literal["fp32", "fp16", "int8"], _engine("Precision of the engine.")] = "int8"
    task: Annotated[
        Literal["auto", "classes", "binary", "multilabel", "values", "features"],
        _verdict(
            "Meaning of the outputs, by which they are judged and shown: one class of many, one logit that says yes "
            "or no, several labels, numbers, or features. auto: from the head.",
        ),
    ] = "auto"
    fp16_blocks: Annotated[
        str | None,
        _engine(
            "Blocks of an int8 engine that stay in FP16, such as layer1.0,fc; none; or auto: as few as meet the "
            "limits (default with a validation set and --min-agreement or --max-top1-drop).",
        ),
    ] = None
    backend: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx", "triton", "openvino", "onnxruntime"],
        _engine("auto takes TensorRT where it and a GPU are present, else OpenVINO."),
    ] = "auto"
    target: Annotated[
        str | None, _engine("GPU to build for, such as sm_89; triton needs it on machines without a GPU.")
    ] = None
    cpu_form: Annotated[
        Literal["avx2", "vnni", "amx"] | None,
        _engine(
            "Kind of CPU that an int8 engine for CPUs is built for; avx2 runs on every x86 CPU. Default: this one's."
        ),
    ] = None
    batch: Annotated[str, _engine("One batch size, or MIN:OPT:MAX; calls of OPT images are the fastest.")] = (
        "1:1:32"
    )
    dynamic_size: Annotated[
        str | None,
        _engine(
            "Take images of any height and width from MIN to MAX, each a side or HxW: 160:320. The engine is "
            "calibrated, judged and tuned at --size, which must lie between them.",
            metavar="MIN:MAX",
        ),
    ] = None
    input_format: Annotated[
        Literal["float32-nchw", "uint8-nhwc"],
        _engine("uint8-nhwc builds normalization and layout into the engine.", "--input"),
    ] = "float32-nchw"
    output: Annotated[
        Path | None, _engine("Engine directory to make. Default: MODEL-PRECISION-BACKEND.", "--output", "-o")
    ] = None
    force: Annotated[bool, _engine("Replace an existing engine directory.", "--force")] = False
    no_reference: Annotated[
        bool, _engine("Do not keep the fp32 graph; verify then needs --reference.", "--no-reference")
    ] = False
    no_thumbnails: Annotated[
        bool,
        _engine(
            "Keep no small copies of your images in the report, for confidential ones.", "--no-thumbnails"
        ),
    ] = False
