"""Launches as data: some run, some are only recorded, and an implementation can be forced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fused_kernels import launch as launching
from fused_kernels.errors import MissingPackage
from fused_kernels.launch import (
    Functor,
    Launch,
    Out,
    implementation,
    interpreted,
    kernel_function,
    launch,
    listening,
    recording,
    uses_kernels,
)
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution, passes
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import activation, batch_norm_vectors, kernels, tiles, weight
from tests.fused_kernels.launches import bytes_read, bytes_written

TILE = Tile(32, 32, 32, warps=2, stages=5)


@dataclass
class FakeKernel:
    """Stands in for a kernel and keeps what it is launched with."""

    grids: list[tuple[int, ...]] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, grid: tuple[int, ...]) -> FakeKernel:
        self.grids.append(grid)
        return self

    def __call__(self, **arguments: Any) -> None:
        self.arguments = arguments


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """Every kernel and functor is this one."""
    fake = FakeKernel()
    monkeypatch.setattr(launching, "kernel_function", lambda name: fake if name == "passes.k" else name)
    return fake


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Clear the cache of kernels before and after the test."""
    kernel_function.cache_clear()
    yield
    kernel_function.cache_clear()


def test_markers_are_resolved_also_inside_of_tuples(kernel: FakeKernel) -> None:
    x, y = torch.ones(2), torch.ones(3)
    launch(
        "passes.k", (4, 2), TILE, a=x, b=Out(y), c=Functor("m.f"), d=(Out(x), None, 7, Functor("m.g")), e=()
    )
    assert kernel.grids == [(4, 2)]
    given = kernel.arguments
    assert given["a"] is x
    assert given["b"] is y
    assert given["c"] == "m.f"
    assert given["d"][0] is x
    assert given["d"][1:] == (None, 7, "m.g")
    assert given["e"] == ()


@pytest.mark.parametrize(("dtype", "fuses"), [(torch.float16, True), (torch.int8, False)])
def test_int8_kernels_round_every_product_and_sum(
    kernel: FakeKernel, dtype: torch.dtype, fuses: bool
) -> None:
    launch("passes.k", (1,), TILE, a=torch.ones(2), b=(Out(torch.ones(2, dtype=dtype)),))
    assert kernel.arguments["enable_fp_fusion"] is fuses


def test_options_are_those_of_the_tile(kernel: FakeKernel) -> None:
    launch("passes.k", (1,), TILE, x=torch.ones(1))
    assert (kernel.arguments["num_warps"], kernel.arguments["num_stages"]) == (2, 5)
    assert "maxnreg" not in kernel.arguments
    launch("passes.k", (1,), replace(TILE, registers=128), x=torch.ones(1))
    assert kernel.arguments["maxnreg"] == 128


def test_an_empty_grid_is_recorded_and_runs_nothing(kernel: FakeKernel) -> None:
    with recording() as launches:
        launch("passes.k", (3, 0), TILE, x=torch.ones(1))
    assert kernel.grids == []
    assert [made.grid for made in launches] == [(3, 0)]


def test_bytes_are_those_of_the_tensors_read_and_written() -> None:
    x, y, z = (torch.empty(5, dtype=dtype) for dtype in (torch.float32, torch.float16, torch.int8))
    made = Launch("passes.k", (1,), {"a": x, "b": Out(y), "c": (z, Out(x), None, 3), "d": 9}, TILE)
    assert bytes_read(made) == 5 * 4 + 5
    assert bytes_written(made) == 5 * 2 + 5 * 4


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_abstract_tensors_are_recorded_and_nothing_runs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "kernel_function", None)
    n, c, k, h, w = 2, 20, 24, 5, 7
    conv = Conv(3, 3, 2, 1)
    device = "meta" if kind == "meta" else "cpu"
    with FakeTensorMode(), torch.device(device), tiles(TILE), recording() as launches:
        x = torch.empty(n, c, h, w, dtype=torch.float16)
        y, partials = convolution.conv_moments(
            x, torch.empty(k, c, 3, 3, dtype=torch.float16), conv, torch.empty(4, c)
        )
        g, sums = convolution.dgrad_drelu(
            y, torch.empty(k, c, 3, 3, dtype=torch.float16), conv, x, torch.empty(4, c)
        )
    assert (y.shape, y.dtype) == ((n, k, 3, 4), torch.float16)
    assert partials.rows.shape == (2, 1, k)
    forward, backward = launches
    assert bytes_read(forward) == 2 * n * c * h * w + 2 * k * c * 9 + 4 * 4 * c
    assert bytes_written(forward) == 2 * n * k * 3 * 4 + 4 * 2 * k
    assert (g.shape, sums.rows.shape) == (x.shape, (2, 4, c))
    assert backward.grid == (4,), "a program for each parity"


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_what_is_recorded_does_not_depend_on_the_device(device: str) -> None:
    with tiles(TILE), kernels(), recording() as launches:
        x, w, dy = (
            t.to(device) for t in (activation(2, 40, 5, 5), weight(24, 40, 3, 3), activation(2, 24, 5, 5))
        )
        convolution.wgrad(x, dy, Conv(3, 3, 1, 1), batch_norm_vectors(40).to(device))
        convolution.dgrad_shortcut(dy, w, Conv(3, 3, 1, 1), x.shape, x)
    assert [(made.kernel, made.grid) for made in launches] == [
        ("wgrad.wgrad_kernel", (2, 9, 1)),
        ("conv.conv_kernel", (4,)),
    ]
    read = 4 * (2 * 25 * 40 + 2 * 25 * 24)
    assert [bytes_read(made) for made in launches] == [
        read + 4 * 4 * 40,
        read + 4 * 24 * 40 * 9,
    ]
    assert [bytes_written(made) for made in launches] == [4 * 24 * 40 * 9, 4 * 2 * 25 * 40]


def test_a_listener_hears_before_the_kernel_runs_and_not_afterwards(kernel: FakeKernel) -> None:
    heard: list[int] = []
    with listening(lambda _: heard.append(len(kernel.grids))), recording() as launches:
        launch("passes.k", (1,), TILE, x=torch.ones(1))
    launch("passes.k", (1,), TILE, x=torch.ones(1))
    assert heard == [0]
    assert len(launches) == 1


def test_an_implementation_can_be_forced_and_is_restored() -> None:
    x = torch.ones(1)
    assert uses_kernels(x)
    with implementation("reference"):
        assert not uses_kernels(x)
        with implementation("kernels"):
            assert uses_kernels(x)
        assert not uses_kernels(x)
    with pytest.raises(RuntimeError), implementation("reference"):
        raise RuntimeError
    assert uses_kernels(x)


def test_a_reference_launches_nothing() -> None:
    y = activation(1, 4, 2, 2)
    with implementation("reference"), recording() as launches:
        passes.join(y, batch_norm_vectors(4), y)
    assert launches == []


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown implementation 'triton': choose 'kernels' or 'reference'"):
        implementation("triton").__enter__()


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), (None, False), ("true", True)])
def test_cpu_tensors_need_the_interpreter(
    value: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    if value is not None:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    assert interpreted() is expected
    assert uses_kernels(torch.ones(1)) is expected
    assert uses_kernels(torch.ones(1, device="meta"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_float64_is_computed_by_references(device: str) -> None:
    assert not uses_kernels(torch.ones(1, dtype=torch.float64, device=device))


@pytest.mark.usefixtures("forgotten")
def test_a_missing_triton_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fused_kernels.kernels.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    y = activation(1, 4, 2, 2)
    with pytest.raises(MissingPackage, match=r"need Triton: pip install 'rescompile\[triton\]'"):
        passes.join(y, batch_norm_vectors(4), y)


@pytest.mark.usefixtures("forgotten")
def test_another_missing_module_keeps_its_own_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught:
        kernel_function("no_such_module.kernel")
    assert not isinstance(caught.value, MissingPackage)
