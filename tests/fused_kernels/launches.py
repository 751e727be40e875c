"""Bytes that a recorded launch moves."""

from __future__ import annotations

from fused_kernels.launch import Launch


def bytes_read(launch: Launch) -> int:
    """Bytes of all tensors read, each once."""
    return sum(tensor.nbytes for tensor, written in launch.tensors() if not written)


def bytes_written(launch: Launch) -> int:
    """Bytes of all tensors written, each once."""
    return sum(tensor.nbytes for tensor, written in launch.tensors() if written)
