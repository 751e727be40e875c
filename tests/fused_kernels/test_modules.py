"""Fused modules behave as torch's do: modes, precision, checkpoints, compile, and whole networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from statistics import geometric_mean

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_kernels import modules
from fused_kernels.choice import choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.fusing import fuse
from fused_kernels.launch import implementation, recording
from fused_kernels.modules import FusedBottleneck, FusedResNet, FusedStage, FusedStem
from tests.fused_kernels.conftest import activation, fitting, reseed
from tests.fused_kernels.launches import bytes_written
from tests.fused_kernels.plain_networks import BasicBlock, Bottleneck, PadShortcut, ResNet, projection
from tests.fused_kernels.tolerances import SUM, assert_close, distance


@pytest.fixture(autouse=True)
def in_plain_pytorch(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests named for the kernels run the kernels, all others the references."""
    with (
        implementation("kernels" if "kernels" in request.node.name else "reference"),
        choosing(fitting),
    ):
        yield


def blocks(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    first = Bottleneck(16, 8, 2, projection(16, 32, 2, norm), norm)
    return nn.Sequential(nn.Sequential(first, Bottleneck(32, 8, norm=norm)))


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A model in float64, and a fused copy in fp32."""
    fused = copy.deepcopy(model)
    assert fuse(fused).replaced
    return model.double(), fused


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, every parameter's gradient and every buffer after one pass with a random upstream gradient."""
    z = model(x)
    upstream = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z.dtype)
    z.backward(upstream)
    grads = {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"z": z.detach(), **grads, **{f"buffer {n}": b.clone() for n, b in model.named_buffers()}}


def compare(plain: nn.Module, fused: nn.Module, x: Tensor) -> None:
    expected, got = step(plain, x.double()), step(fused, x)
    assert got.keys() == expected.keys()
    for name in expected:
        if expected[name].dtype == torch.int64:
            assert torch.equal(got[name], expected[name]), name
        else:
            assert_close(name, got[name], expected[name], SUM if "buffer" in name else "product")


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "plain": nn.BatchNorm2d,
    "momentum": lambda c: nn.BatchNorm2d(c, momentum=0.37),
    "cumulative average": lambda c: nn.BatchNorm2d(c, momentum=None),
    "large eps": lambda c: nn.BatchNorm2d(c, eps=0.3),
    "untracked": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "not affine": lambda c: nn.BatchNorm2d(c, affine=False),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norms_of_every_kind_train_as_torchs(name: str, training: bool) -> None:
    plain, fused = twins(blocks(NORMS[name]).train(training))
    x = activation(2, 16, 7, 5, mean=0.5)
    for _ in range(2):  # the cumulative average differs from the second pass on
        compare(plain, fused, x)


def test_a_frozen_norm_in_a_training_network() -> None:
    plain, fused = twins(blocks())
    for model in (plain, fused):
        model[0][0].bn2.eval()
        model[0][1].eval()
        model[0][1].conv2.weight.requires_grad_(False)
    compare(plain, fused, activation(2, 16, 6, 6))


def test_a_norm_without_any_tensor_is_refused_in_one_sentence() -> None:
    block = FusedBottleneck(
        32, 8, norm_layer=lambda c: nn.BatchNorm2d(c, affine=False, track_running_stats=False)
    )
    with pytest.raises(ShapeError, match="affine=False and track_running_stats=False"):
        block(activation(1, 32, 4, 4))


def test_one_value_per_channel_is_refused_in_training_as_torch_does() -> None:
    block = FusedBottleneck(32, 8)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(activation(1, 32, 1, 1))
    assert block.eval()(activation(1, 32, 1, 1)).shape == (1, 32, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_errs_as_torch_does_under_autocast(dtype: torch.dtype) -> None:
    """The mean of eight seeds is compared: with one seed the error of a vector of eight numbers is luck."""
    ratios: dict[str, list[float]] = {}
    for seed in range(8):
        reseed(seed)
        truth, fused = twins(blocks())
        plain = copy.deepcopy(truth).float()
        x = activation(2, 16, 6, 6)
        expected = step(truth, x.double())
        with torch.autocast("cpu", dtype=dtype):
            torchs, ours = step(plain, x), step(fused, x)
        assert ours["z"].dtype == dtype
        for name in expected:
            if "grad" in name:
                assert ours[name].dtype == torch.float32, name
            off, torch_off = (float(distance(each[name], expected[name])) + 1e-6 for each in (ours, torchs))
            ratios.setdefault(name, []).append(off / torch_off)
    for name, each in ratios.items():
        assert geometric_mean(each) < 3, name
    assert geometric_mean(ratio for each in ratios.values() for ratio in each) < 1.5


def test_autocast_runs_the_kernels() -> None:
    _, fused = twins(blocks())
    x = activation(2, 16, 4, 4)
    with torch.autocast("cpu", dtype=torch.float16):
        z = fused(x)
    with torch.autocast("cpu", dtype=torch.float16), implementation("reference"):
        expected = fused(x)
    assert distance(z, expected) < 2e-3


def test_a_model_in_bf16_keeps_its_dtype() -> None:
    fused = twins(blocks())[1].bfloat16()
    got = step(fused, activation(2, 16, 6, 6, torch.bfloat16))
    assert {t.dtype for n, t in got.items() if "num_batches" not in n} == {torch.bfloat16}


def test_a_dtype_that_is_not_the_weights_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"torch.float16.*torch.float32.*autocast"):
        FusedBottleneck(32, 8)(activation(1, 32, 4, 4, torch.float16))


def test_an_input_of_other_channels_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[N, 32, H, W\], got \[1, 8, 4, 4\]"):
        FusedBottleneck(32, 8)(activation(1, 8, 4, 4))
    with pytest.raises(ShapeError, match=r"images \[N, 3, H, W\], got \[3, 8, 8\]"):
        FusedStem()(torch.zeros(3, 8, 8))


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)


def test_reentrant_checkpointing_as_torchs() -> None:
    plain, fused = twins(blocks())
    compare(Checkpointed(plain, True), Checkpointed(fused, True), activation(2, 16, 6, 6))


def test_checkpointing_moves_running_statistics_once() -> None:
    plain, fused = twins(blocks())
    x = activation(2, 16, 6, 6)
    expected, got = step(plain, x.double()), step(Checkpointed(fused, False), x)
    for name in expected:
        assert_close(name, got[name.replace(" ", " inner.")].float(), expected[name].double())


@pytest.mark.parametrize("training", [True, False])
def test_torch_compile_sees_one_graph(training: bool) -> None:
    _, fused = twins(blocks())
    compiled_model = copy.deepcopy(fused).train(training)
    compiled = torch.compile(compiled_model, backend="aot_eager", fullgraph=True)
    x = activation(2, 16, 6, 6)
    expected, got = step(fused.train(training), x), step(compiled, x)
    for name in expected:
        twin = name.replace("grad ", "grad _orig_mod.").replace("buffer ", "buffer _orig_mod.")
        assert torch.equal(expected[name], got[twin]), name


def test_torch_compile_of_inference_sees_one_graph() -> None:
    model = FusedResNet(modules.FusedBasicBlock, (1, 1), 5, widths=(8, 16)).eval()
    x = activation(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        got = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
    assert_close("logits", got, expected.double())


def test_folded_weights_follow_their_parameters() -> None:
    block = FusedBottleneck(32, 8).eval()
    x = activation(1, 32, 4, 4)

    def differs_after(change: Callable[[], object]) -> bool:
        before = block(x)
        change()
        return not torch.equal(before, block(x))

    with torch.no_grad():
        assert torch.equal(block(x), block(x))
        assert differs_after(lambda: block.bn1.running_mean.add_(1))
        assert differs_after(lambda: block.conv2.weight.mul_(2))
        assert differs_after(lambda: block.load_state_dict(FusedBottleneck(32, 8).state_dict()))
        assert differs_after(lambda: setattr(block.bn3, "eps", 0.5))


@pytest.mark.parametrize("make", [lambda: FusedResNet(FusedBottleneck, (1,), 4, widths=(8,)), FusedStem])
def test_what_was_written_behind_autograds_back_is_folded_after_a_change_of_mode_or_a_training_pass(
    make: Callable[[], nn.Module],
) -> None:
    network, x = make().eval(), activation(1, 3, 16, 16)

    def follows(change: Callable[[], object]) -> None:
        with torch.no_grad():
            before = network(x)
        change()
        with torch.no_grad():
            after = network.eval()(x) if network.training else network(x)
            assert not torch.equal(after, before)
            assert torch.equal(after, copy.deepcopy(network)(x))

    def by_data() -> None:
        network.train()
        for parameter in network.parameters():
            parameter.data.mul_(1.5)  # changes no version

    def by_a_fused_optimizer() -> None:
        network(x).square().sum().backward()  # norms are frozen: the network stays in eval mode
        torch.optim.SGD(network.parameters(), lr=1e-2, fused=True).step()  # neither does this

    follows(by_data)
    follows(by_a_fused_optimizer)


def test_kernels_of_inference_store_no_more_than_its_outputs() -> None:
    stage = FusedStage(FusedBottleneck(32, 8), FusedBottleneck(32, 8)).eval().to("meta")
    with torch.no_grad(), recording() as launches:
        stage(torch.empty(2, 32, 8, 8, device="meta"))
    written = sum(bytes_written(launch) for launch in launches)
    pixels = 2 * 8 * 8 * 4
    assert written <= 2 * pixels * (8 + 8 + 32)


def varied(name: str) -> tuple[nn.Module, FusedResNet]:
    """A plain and a fused network of the same weights, with norms whose ReLUs open for some pixels and not for others.

    As made, nearly every maximum that the stem pools is positive, and the next norm takes a shift of all of them away:
    the gradient of the stem's shift is then zero but for rounding, which nothing can be compared with.
    """
    plain, fused = (copy.deepcopy(model) for model in PAIRS[name])
    generator = torch.Generator().manual_seed(5)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -1.2, 0.8, generator=generator)
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -0.2, 0.2, generator=generator)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator=generator)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


PAIRS: dict[str, tuple[nn.Module, FusedResNet]] = {
    "bottleneck": (
        ResNet(Bottleneck, (2, 1), (8, 16)),
        FusedResNet(modules.FusedBottleneck, (2, 1), 10, widths=(8, 16)),
    ),
    "basic": (
        ResNet(BasicBlock, (1, 1), (8, 16)),
        FusedResNet(modules.FusedBasicBlock, (1, 1), 10, widths=(8, 16)),
    ),
    "cifar": (
        ResNet(BasicBlock, (1, 1, 1), (16, 32, 64), imagenet=False, pad=True),
        modules.cifar_resnet(8),
    ),
}


@pytest.mark.parametrize("linked", [True, False])
def test_stages_linked_or_apart_compute_the_same(linked: bool) -> None:
    plain, fused = varied("bottleneck")
    fused.linked = linked
    called: list[object] = []
    fused.layer1.register_forward_hook(lambda *_: called.append(1))
    compare(plain.double(), fused, activation(2, 3, 18, 22))
    assert bool(called) is not linked


@pytest.mark.parametrize("name", PAIRS)
def test_state_dicts_go_both_ways(name: str) -> None:
    plain, fused = (copy.deepcopy(model) for model in PAIRS[name])
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    assert list(plain.state_dict()) == list(fused.state_dict())


@pytest.mark.parametrize("name", ["bottleneck", "cifar"])
def test_kernels_train_whole_networks(name: str) -> None:
    """Both stems, both blocks and every shortcut; 'basic' only puts them together differently."""
    plain, fused = varied(name)
    compare(plain.double(), fused, activation(2, 3, 10, 13, mean=0.3).contiguous())


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_whole_networks_compute_what_torch_computes(name: str, training: bool) -> None:
    plain, fused = (model.train(training) for model in varied(name))
    compare(plain.double(), fused, activation(4, 3, 26, 22, mean=0.3).contiguous())


@pytest.mark.parametrize(
    ("name", "how"),
    [("bottleneck", "kernels"), ("cifar", "kernels"), *((name, "reference") for name in PAIRS)],
)
def test_inference_of_whole_networks(name: str, how: str) -> None:
    plain, fused = (copy.deepcopy(model).eval() for model in PAIRS[name])
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    fused.load_state_dict(plain.state_dict())
    x = activation(2, 3, 18, 22)
    with torch.no_grad():
        assert_close("logits", fused(x), plain.double()(x.double()))


def test_the_image_gets_its_gradient() -> None:
    plain, fused = (copy.deepcopy(model) for model in PAIRS["cifar"])
    fused.load_state_dict(plain.state_dict())
    x = activation(2, 3, 8, 8)
    wide = x.double().requires_grad_()
    plain.double()(wide).square().sum().backward()
    fused(x.requires_grad_()).square().sum().backward()
    assert_close("image gradient", x.grad, wide.grad)


@pytest.mark.parametrize("name", PAIRS)
def test_a_whole_model_is_adopted(name: str) -> None:
    plain, _ = (copy.deepcopy(model) for model in PAIRS[name])
    fused = FusedResNet.adopt(plain)
    assert fused.conv1 is plain.conv1
    assert list(fused.state_dict()) == list(plain.state_dict())
    x = activation(2, 3, 16, 16)
    with torch.no_grad():
        assert_close("logits", fused.eval()(x), copy.deepcopy(plain).eval().double()(x.double()))


class Extra(ResNet):
    """A forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x))


def test_a_model_that_is_no_plain_resnet_is_not_adopted() -> None:
    with pytest.raises(Unsupported, match="computes something else"):
        FusedResNet.adopt(Extra(BasicBlock, (1,), (8,)))
    odd = ResNet(BasicBlock, (1,), (8,))
    odd.maxpool = nn.MaxPool2d(2)
    with pytest.raises(Unsupported, match="maxpool is MaxPool2d"):
        FusedResNet.adopt(odd)
    odd = ResNet(BasicBlock, (1,), (8,))
    odd.layer1[0].bn1 = nn.GroupNorm(2, 8)
    with pytest.raises(Unsupported, match=r"layer1\.0: bn1 is a GroupNorm"):
        FusedResNet.adopt(odd)
    with pytest.raises(Unsupported, match="no conv1"):
        FusedResNet.adopt(nn.Sequential())


def test_torchvisions_constructors_are_accepted() -> None:
    names = [name for name, _ in modules.resnet50().to("meta").named_parameters()]
    assert len(names) == 161  # torchvision's resnet50: 53 convolutions, 106 norm parameters, 2 of fc
    with pytest.raises(Unsupported, match="groups=32"):
        FusedBottleneck(64, 64, groups=32, base_width=4)
    with pytest.raises(Unsupported, match=r"6n\+2"):
        modules.cifar_resnet(21)


def test_a_pad_shortcut_does_what_its_docstring_says() -> None:
    x = activation(1, 4, 5, 5)
    assert torch.equal(
        modules.block.nn.Module.__call__(modules.resnet.PadShortcut(2, (1, 2)), x), PadShortcut(2, (1, 2))(x)
    )


def test_a_whole_network_in_float64_infers_in_float64() -> None:
    plain, fused = (copy.deepcopy(model).eval().double() for model in PAIRS["cifar"])
    fused.load_state_dict(plain.state_dict())
    x = activation(2, 3, 8, 8).double()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-12, atol=1e-12)
