"""Runs one peer's quantizer in its own process, so that time and memory are only the quantizer's.

    python -m benchmarks.quantizers NAME REFERENCE.onnx IMAGES.npz OUTPUT

Reads an fp32 graph and calibration images float32 [N, 3, H, W], writes the quantized model, and prints seconds and peak
memory as JSON. ``nncf`` and ``onnxruntime`` use the settings that their manuals recommend for speed on this CPU. The
others are for ``benchmarks.accuracy``; those of ONNX Runtime use the quantization grids of TensorRT.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.environment import cpu_features
from rescompile.progress import peak_memory_bytes

Images = NDArray[np.float32]
STRIDE = 8
"""Number of images whose activations ONNX Runtime keeps at once."""


def nncf(reference: Path, images: Images, output: Path, *, preset: str = "PERFORMANCE") -> None:
    """OpenVINO with NNCF's post-training quantization.

    PERFORMANCE is symmetric, and NNCF's fastest preset; MIXED has asymmetric activations.
    """
    import nncf as library
    import openvino as ov

    model = ov.convert_model(reference)
    data = library.Dataset([image[None] for image in images])
    quantized = library.quantize(
        model, data, subset_size=len(images), preset=library.QuantizationPreset[preset]
    )
    ov.save_model(quantized, output, compress_to_fp16=False)


def onnxruntime_by(reference: Path, images: Images, output: Path, *, method: str) -> None:
    """ONNX Runtime's static quantization on TensorRT's grids: QDQ, symmetric int8, per-channel weights."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    images = images[: len(images) // STRIDE * STRIDE]
    quantize_static(
        str(reference),
        str(output),
        _reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            # its histograms would keep the activations of all images at once
            "CalibStridedMinMax": STRIDE,
        },
    )


def _reader(images: Images) -> Any:
    """Calibration images in the form that ONNX Runtime reads, one at a time or a part of the set."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(images)

        def __len__(self) -> int:
            return len(images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._rest = iter(images[start_index:end_index])

        def get_next(self) -> dict[str, Images] | None:
            image = next(self._rest, None)
            return None if image is None else {"input": image[None]}

    return Reader()


def onnxruntime(reference: Path, images: Images, output: Path) -> None:
    """ONNX Runtime's static quantization: QDQ, uint8 activations, per-channel int8 weights.

    On x86 without VNNI its manual asks for ``reduce_range``, because its products saturate otherwise.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    fast = {"avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"} & set(cpu_features())
    quantize_static(
        str(reference),
        str(output),
        _reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not fast,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


QUANTIZERS: dict[str, Callable[[Path, Images, Path], None]] = {
    "nncf": nncf,
    "nncf-mixed": partial(nncf, preset="MIXED"),
    "onnxruntime": onnxruntime,
    "onnxruntime-minmax": partial(onnxruntime_by, method="MinMax"),
    "onnxruntime-entropy": partial(onnxruntime_by, method="Entropy"),
    "onnxruntime-percentile": partial(onnxruntime_by, method="Percentile"),
}


def main() -> None:
    """Run the quantizer that the arguments name."""
    name, reference, images, output = sys.argv[1:]
    with np.load(images) as arrays:
        pixels = arrays["images"]
    began = time.perf_counter()
    QUANTIZERS[name](Path(reference), pixels, Path(output))
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_rss_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    main()
