"""The speed ratios over peers that the project aims at on a CPU: (name, case, ours, peer, smallest ratio)."""

from __future__ import annotations

_OURS = "rescompile int8"

TARGETS: tuple[tuple[str, str, str, str, float], ...] = (
    ("level with NNCF, batch 1", "resnet50 latency", _OURS, "OpenVINO + NNCF int8", 1.0),
    ("level with NNCF, best batch", "resnet50 throughput", _OURS, "OpenVINO + NNCF int8", 1.0),
    ("over ONNX Runtime INT8, batch 1", "resnet50 latency", _OURS, "ONNX Runtime int8", 5.0),
    ("over PyTorch eager FP32, batch 1", "resnet50 latency", _OURS, "PyTorch eager", 8.0),
)
