"""The driver is reached through pycuda, or through ctypes where pycuda is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rescompile.backends.cuda import driver
from rescompile.backends.cuda.driver import CtypesDriver, DriverError, call, open_driver
from rescompile.errors import BackendUnavailable
from tests.backends.cuda.fake_cuda import FakeCuda


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    monkeypatch.setattr(driver, "load_library", lambda: made)
    return made


def test_pycuda_is_taken_where_it_is_installed(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    pycuda = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=pycuda))
    monkeypatch.setitem(sys.modules, "pycuda.driver", pycuda)
    assert open_driver() == (pycuda, gpu)


def test_ctypes_is_taken_where_pycuda_is_missing(gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    api, library = open_driver()
    assert isinstance(api, CtypesDriver)
    assert (api.library, library) == (gpu, gpu)


def test_without_a_driver_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "load_library", lambda: None)
    with pytest.raises(BackendUnavailable, match="this machine has no CUDA driver"):
        open_driver()


@pytest.mark.parametrize(("status", "words"), [(2, "out of memory"), (999, "unknown error")])
def test_an_error_of_the_driver_has_its_text_and_number(gpu: FakeCuda, status: int, words: str) -> None:
    library: Any = SimpleNamespace(cuInit=lambda flags: status, cuGetErrorString=gpu.cuGetErrorString)
    with pytest.raises(DriverError, match=rf"^the CUDA driver refuses cuInit: {words} \(error {status}\)$"):
        call(library, "cuInit", 0)
