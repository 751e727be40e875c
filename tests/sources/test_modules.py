from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import swa_utils

from calibration.preprocess import CIFAR
from rescompile.errors import CheckpointError, GraphError, UsageError
from rescompile.sources import module_export
from rescompile.sources.modules import network_of
from rescompile.sources.users_code import first_line
from tests.sources.zoo import run


class Tiny(nn.Module):
    """A block, and an answer of the form that a test asks for."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        y = self.bn(self.conv(x)).relu()
        logits = self.fc(self.drop(y.mean((2, 3))))
        answers = {
            "tensor": logits, "logits": {"logits": logits, "hidden": y}, "out": {"out": logits}, "pair": (logits, y),
            "entries": {"a": logits, "b": y}, "nested": (logits, [y]), "nothing": None, "names": ["a"],
        }  # fmt: skip
        return answers[self.form]


def images(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def torchscript(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick exporter alone, as without onnxscript."""
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_graph_answers_as_the_module_does_in_eval_mode(exporter: str, request: pytest.FixtureRequest) -> None:
    if exporter == "torchscript":
        request.getfixturevalue("torchscript")
    module = Tiny().double()
    network = network_of(module, preprocess=CIFAR, preprocess_from="the test")
    x = images(3, 3, 32, 32)
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run(network, x), expected, rtol=1e-3, atol=1e-5)
    assert network.reference is not None
    np.testing.assert_allclose(network.reference(x), expected, rtol=1e-3, atol=1e-5)
    assert network.name == "tiny"


@pytest.mark.usefixtures("torchscript")
def test_users_module_stays_as_it_was() -> None:
    module = Tiny().half()
    module.train()
    module.bn.eval()
    network_of(module, size=(8, 8))
    assert module.training
    assert module.drop.training
    assert not module.bn.training
    assert module.fc.weight.dtype == torch.float16


@pytest.mark.usefixtures("torchscript")
@pytest.mark.parametrize(
    ("form", "outputs", "notes"),
    [
        ("logits", 1, "only 'logits' is built, not hidden"),
        ("out", 1, ""),
        ("pair", 2, ""),
        ("entries", 2, ""),
        ("nested", 1, "only the tensors are built, not the collections beside them"),
    ],
)
def test_answers_of_every_form_are_taken(form: str, outputs: int, notes: str) -> None:
    network = network_of(Tiny(form), size=(8, 10))
    assert len(network.graph.graph.output) == outputs
    assert notes in " ".join(network.notes)
    assert [side.dim_value for side in network.graph.graph.input[0].type.tensor_type.shape.dim][1:] == [
        3,
        8,
        10,
    ]


@pytest.mark.usefixtures("torchscript")
@pytest.mark.parametrize(
    "wrapped",
    [
        nn.DataParallel,
        swa_utils.AveragedModel,
        torch.compile,
        lambda module: nn.DataParallel(torch.compile(swa_utils.AveragedModel(module))),
    ],
    ids=["parallel", "averaged", "compiled", "all"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_wrappers_of_training_are_taken_off(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    assert network_of(wrapped(Tiny()), size=(8, 8)).name == "tiny"


@pytest.mark.usefixtures("torchscript")
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda conv: conv.register_forward_hook(lambda module, given, answer: 2 * answer),
    ],
    ids=["pruned", "weight norm", "parametrization", "spectral norm", "hook"],
)
def test_modules_whose_weights_are_computed_are_taken(change: Callable[[nn.Module], Any]) -> None:
    module = Tiny().eval()
    change(module.conv)
    x = images(2, 3, 8, 8)
    found = run(network_of(module, size=(8, 8)), x)
    with torch.inference_mode():
        np.testing.assert_allclose(found, module(torch.from_numpy(x)).numpy(), rtol=1e-3, atol=1e-5)


class Functional(nn.Module):
    """A network whose convolution is a call, and whose way may depend on the images."""

    def __init__(self, *, by_values: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2, 3, 3))
        self.by_values = by_values

    def forward(self, x: Tensor) -> Tensor:
        if self.by_values and x.mean() > 0:
            x = -x
        return nn.functional.conv2d(x, self.weight).mean((2, 3))


def test_weights_of_a_convolution_that_is_a_call_tell_the_channels() -> None:
    assert run(network_of(Functional(), size=(8, 8)), images(2, 2, 8, 8)).shape == (2, 4)


@pytest.mark.usefixtures("torchscript")
def test_one_number_for_each_image_is_a_row_of_one() -> None:
    class Squeezed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean((2, 3)).squeeze(1)

    assert run(network_of(Squeezed(nn.Conv2d(3, 1, 3)), size=(8, 8)), images(2, 3, 8, 8)).shape == (2, 1)


def test_an_exporter_that_refuses_says_one_sentence_and_prints_nothing(
    capfd: pytest.CaptureFixture[str], torchscript: None
) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(5))
    with pytest.raises(GraphError, match=r"cannot be exported to ONNX .*adaptive_avg_pool2d") as refused:
        network_of(module, size=(9, 9))
    assert len(str(refused.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_colours_of_a_terminal_are_no_part_of_a_sentence() -> None:
    assert first_line(ValueError("\x1b[96mThis is step 1/3\x1b[0m of it\nmore")) == "This is step 1/3 of it"


def test_network_that_decides_by_values_is_refused_with_the_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        GraphError, match=r"functional decides by the values .*, at test_modules\.py:\d+, while"
    ):
        network_of(Functional(by_values=True), size=(8, 8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("torchscript")
def test_weights_decide_the_hash() -> None:
    module = Tiny()
    first = network_of(module, size=(8, 8)).checkpoint
    assert network_of(module, size=(8, 8)).checkpoint == first
    with torch.no_grad():
        module.fc.bias[0] += 1
    assert network_of(module, size=(8, 8)).checkpoint.sha256 != first.sha256


def test_module_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing says the size of tiny's images"):
        network_of(Tiny())
    with pytest.raises(UsageError, match="no convolution"):
        network_of(nn.Linear(3, 3), size=(8, 8))
    for form, kind in (("nothing", "NoneType"), ("names", "list")):
        with pytest.raises(GraphError, match=rf"\(its answer is a {kind} without tensors\)"):
            network_of(Tiny(form), size=(8, 8))
    with pytest.raises(GraphError, match="does not run on images"):
        network_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(9, 9)), size=(8, 8))


def test_modules_without_usable_weights_are_refused_by_name() -> None:
    def conv(**options: Any) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.BatchNorm2d(4))

    broken, negative, lazy = conv(), conv(), nn.Sequential(nn.LazyConv2d(4, 3))
    with torch.no_grad():
        broken[0].weight[1, 2, 0, 0] = float("nan")
        negative[1].running_var[2] = -1
    for module, kind, said in (
        (broken, CheckpointError, r"module Sequential: 0\.weight has 1 of 108 values NaN or infinite"),
        (negative, CheckpointError, r"1\.running_var is negative \(-1 in channel 2\)"),
        (lazy, UsageError, r"0\.weight has no values yet"),
        (conv(device="meta"), UsageError, r"0\.weight has no values yet \(lazy, or on the meta device\)"),
    ):
        with pytest.raises(kind, match=said):
            network_of(module, size=(8, 8))


def test_a_stage_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no module c2 \(layer1\) to return; name (?!c2).*fc"):
        network_of(Tiny(), size=(8, 8), outputs=("c2",))


def test_infinite_buffers_that_are_not_weights_are_taken() -> None:
    module = Tiny()
    module.register_buffer("mask", torch.tensor(float("-inf")))
    assert network_of(module, size=(8, 8)).graph


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(UsageError, match=r"TorchScript.*pass the module that it was made of"):
        network_of(torch.jit.trace(Tiny().eval(), torch.zeros(1, 3, 8, 8)), size=(8, 8))


class Unexportable(nn.Module):
    """A module whose forward pass leaves torch, so that it cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling():
            raise ValueError("not here")
        return self.conv(x)


@pytest.mark.usefixtures("torchscript")
def test_module_that_cannot_be_exported_names_the_reason() -> None:
    with pytest.raises(GraphError, match=r"cannot be exported to ONNX \(not here\)"):
        network_of(Unexportable(), size=(8, 8))
