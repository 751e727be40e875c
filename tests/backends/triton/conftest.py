"""Kernels of these tests run in Triton's interpreter; the machine code that they compile, in processes of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fused_kernels.launch import implementation
from rescompile.optional import installed


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """Skip, with the reason, where there are no kernels."""
    if not installed("triton"):
        pytest.skip("Triton is not installed: pip install 'rescompile[triton]'")


@pytest.fixture(autouse=True)
def steps_in_plain_pytorch() -> Iterator[None]:
    """Steps run through the references, as in the plan's executor, although the interpreter is on."""
    with implementation("reference"):
        yield
