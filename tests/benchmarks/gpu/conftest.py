"""Operations of these tests run in plain PyTorch; kernels run in processes of their own."""

from __future__ import annotations

from typing import Any

import pytest

from fused_kernels.launch import implementation


@pytest.fixture(autouse=True)
def plain_pytorch() -> Any:
    """Other tests of this process may have switched the interpreter on."""
    with implementation("reference"):
        yield
