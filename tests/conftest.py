"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real checkpoints and images that RESCOMPILE_DATA names."""
    folder = os.environ.get("RESCOMPILE_DATA")
    if not folder:
        pytest.skip("RESCOMPILE_DATA is not set: no real checkpoints and images here")
    return Path(folder)
