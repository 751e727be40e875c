"""The kernels of these tests run in Triton's interpreter; the machine code that they compile, in processes of its own.

The kernels read ``TRITON_INTERPRET`` when they are imported, so it is set here, before any test of this package is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

import pytest

import fused_kernels.kernels
from fused_kernels.launch import implementation
from rescompile.optional import installed

if installed("triton"):
    os.environ["TRITON_INTERPRET"] = "1"
    for module in iter_modules(fused_kernels.kernels.__path__):
        # now, and not when first launched: a test may have another environment by then
        import_module(f"fused_kernels.kernels.{module.name}")


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
