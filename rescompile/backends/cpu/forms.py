"""The form of an INT8 engine that a CPU computes exactly: detected here, chosen at build, checked at load.

avx2   every x86 CPU: ``lowering`` keeps sums of two products within 16 bits
vnni   products are added in 32 bits, so activations and weights use all of their eight bits
amx    the same graph as vnni, for CPUs that multiply whole tiles
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from rescompile.backends.openvino.compile import compile_model
from rescompile.manifest import CpuForm

CPUINFO = Path("/proc/cpuinfo")
_CHANNELS, _SIDES = 64, (1, 3)
"""Input channels and kernel sizes of the convolutions that are tried."""


@cache
def machine_form() -> CpuForm:
    """The fastest form that this CPU computes exactly, found once."""
    return detected()


def detected() -> CpuForm:
    """The fastest form that this CPU computes exactly, found by trying."""
    flags = flags_of(CPUINFO)
    if "avx512_vnni" not in flags or not _adds_in_32_bits():
        return "avx2"
    return "amx" if "amx_int8" in flags else "vnni"


def computes_exactly(form: CpuForm | None) -> bool:
    """Whether an engine of this form can be executed here as it is stored; engines of older versions have none."""
    return form in (None, "avx2") or machine_form() != "avx2"


def note_on(form: CpuForm, *, asked: bool) -> str:
    """The sentence about the form of a new engine; ``asked``: the user chose it."""
    reason = "as asked" if asked else "what this CPU computes fastest"
    if form == "avx2":
        return f"CPU form avx2 ({reason}): exact on every x86 CPU"
    return (
        f"CPU form {form} ({reason}): CPUs without VNNI run it more slowly; --cpu-form avx2 builds for them"
    )


def flags_of(cpuinfo: Path) -> set[str]:
    """The instruction sets that Linux names; empty elsewhere."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}


def _adds_in_32_bits() -> bool:
    """Whether OpenVINO adds the largest products of INT8 convolutions exactly.

    ONEDNN_MAX_CPU_ISA may keep it from using what the CPU has.
    """
    import openvino as ov
    from openvino import opset13 as ops

    image = ops.parameter([1, _CHANNELS, 4, 4], np.float32)
    bounds = [np.float32(0), np.float32(255)]
    pixels = ops.fake_quantize(image, *bounds, *bounds, 256)
    found = []
    for side in _SIDES:
        weight = ops.convert(
            ops.constant(np.full((_CHANNELS, _CHANNELS, side, side), 127, np.int8)), np.float32
        )
        restored = ops.multiply(weight, np.ones((_CHANNELS, 1, 1, 1), np.float32))
        found.append(ops.convolution(pixels, restored, [1, 1], [0, 0], [0, 0], [1, 1]))
    compiled = compile_model(ov.Model(found, [image]))
    layers = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ordered_ops()]
    precisions = [
        layer["runtimePrecision"].value for layer in layers if layer["layerType"].value == "Convolution"
    ]
    answers = compiled([np.full((1, _CHANNELS, 4, 4), 255, np.float32)])
    sums = [255 * 127 * _CHANNELS * side**2 for side in _SIDES]
    right = all(np.allclose(answers[index], total, rtol=1e-3) for index, total in enumerate(sums))
    return right and precisions == ["u8"] * len(_SIDES)
