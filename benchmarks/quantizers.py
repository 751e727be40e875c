"""Quantizers of others, each in a process of its own, so that time and memory are theirs alone.

    python -m benchmarks.quantizers nncf|onnxruntime REFERENCE.onnx IMAGES.npz OUTPUT

reads an fp32 graph and calibration images float32 [N, 3, H, W], writes the quantized model, and prints seconds and peak
memory as JSON. Both get what their manuals recommend for a CPU like this one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rescompile.environment import cpu_features
from rescompile.stages import peak_memory_bytes


def nncf(reference: Path, images: NDArray[np.float32], output: Path) -> None:
    """OpenVINO with NNCF's post-training quantization, preset PERFORMANCE: symmetric, its fastest."""
    import nncf as library
    import openvino as ov

    model = ov.convert_model(reference)
    data = library.Dataset([image[None] for image in images])
    quantized = library.quantize(
        model, data, subset_size=len(images), preset=library.QuantizationPreset.PERFORMANCE
    )
    ov.save_model(quantized, output, compress_to_fp16=False)


def onnxruntime(reference: Path, images: NDArray[np.float32], output: Path) -> None:
    """ONNX Runtime's static quantization: QDQ, uint8 activations, int8 weights by channel.

    On x86 without VNNI its manual asks for ``reduce_range``, because its products saturate otherwise.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self._rest, None)
            return None if image is None else {"input": image[None]}

    fast = {"avx_vnni", "avx512_vnni", "amx_int8", "dotprod", "i8mm"} & set(cpu_features())
    quantize_static(
        str(reference),
        str(output),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not fast,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


QUANTIZERS: dict[str, Callable[[Path, NDArray[np.float32], Path], None]] = {
    "nncf": nncf,
    "onnxruntime": onnxruntime,
}


def main() -> None:
    """Quantize as the arguments say."""
    name, reference, images, output = sys.argv[1:]
    with np.load(images) as arrays:
        pixels = arrays["images"]
    began = time.perf_counter()
    QUANTIZERS[name](Path(reference), pixels, Path(output))
    print(json.dumps({"seconds": time.perf_counter() - began, "peak_rss_bytes": peak_memory_bytes()}))


if __name__ == "__main__":
    main()
