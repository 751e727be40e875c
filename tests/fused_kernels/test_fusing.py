"""fuse(model): what it replaces, what it leaves and why, and that nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fused_kernels.errors import ShapeError
from fused_kernels.fusing import fuse
from fused_kernels.launch import Functor, implementation, recording
from fused_kernels.modules import FusedBasicBlock, FusedBlock, FusedBottleneck, FusedStage
from rescompile.models.cifar import cifar_resnet
from rescompile.models.resnet import BasicBlock as OurBasicBlock
from tests.fused_kernels.conftest import activation
from tests.fused_kernels.plain_networks import BasicBlock, Bottleneck, ResNet, TimmBottleneck, projection
from tests.fused_kernels.tolerances import assert_close


def small(block: type[BasicBlock] | type[Bottleneck] = Bottleneck, **kwargs: bool) -> ResNet:
    return ResNet(block, (2, 2), (8, 16), **kwargs)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), implementation("reference"):
        return model(x)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, TimmBottleneck])
def test_every_block_of_a_resnet_is_replaced(block: type[Bottleneck]) -> None:
    model = small(block)
    report = fuse(model)
    assert report.replaced == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert list(report.left) == ["conv1"]
    assert report.left["conv1"].startswith("a convolution outside of a residual block; ")
    assert "FusedResNet.adopt(model)" in str(report)
    assert isinstance(model.layer1, FusedStage)
    assert isinstance(model.layer2, FusedStage)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, TimmBottleneck])
@pytest.mark.parametrize("training", [True, False])
def test_a_fused_model_answers_as_before(block: type[Bottleneck], training: bool) -> None:
    model = small(block).double().train(training)
    fused = copy.deepcopy(model)
    fuse(fused)
    assert fused.training == fused.layer1.training == fused.layer1[0].training == training
    x = activation(2, 3, 19, 17).double()
    assert_close("logits", outputs(fused, x), outputs(model, x))


def test_parameters_stay_the_same_objects_under_the_same_names() -> None:
    model = small()
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fuse(model)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)


def test_our_own_networks_are_fused() -> None:
    model = cifar_resnet(OurBasicBlock, 2)
    expected = copy.deepcopy(model).eval()
    report = fuse(model)
    assert len(report.replaced) == 6
    x = activation(1, 3, 8, 8)
    assert_close("logits", outputs(model.eval(), x), outputs(expected.double(), x.double()))


@pytest.mark.parametrize(("block", "written"), [(BasicBlock, 4), (Bottleneck, 4)])
def test_activations_are_written_where_that_is_asked_for(block: type[Bottleneck], written: int) -> None:
    found = []
    for materialize in (False, True):
        model = small(block)
        fuse(model, materialize=materialize)
        model.to("meta")
        with recording() as launches:
            model(torch.empty(2, 3, 8, 8, device="meta")).sum().backward()
        names = [launch.kernel for launch in launches]
        wide = [
            launch for launch in launches if launch.arguments.get("TAPS_H", launch.arguments.get("R")) == 3
        ]
        recomputed = sum(launch.arguments["PROLOGUE"] == Functor("prologues.bn_relu") for launch in wide)
        found.append((names.count("passes.activate_kernel"), recomputed))
    assert found == [(0, 2 * written), (written, 0)]


def test_fusing_twice_changes_nothing() -> None:
    model = small()
    fuse(model)
    blocks = list(model.layer1)
    report = fuse(model)
    assert not report.replaced
    assert all(a is b for a, b in zip(model.layer1, blocks, strict=True))


@pytest.mark.parametrize(
    "shortcut",
    [
        nn.Sequential(nn.Identity(), *projection(16, 32, 1)),
        nn.Sequential(*projection(16, 32, 1), nn.Identity()),
    ],
    ids=["in front, as timm's where nothing is pooled", "behind"],
)
def test_an_identity_in_a_shortcut_is_skipped(shortcut: nn.Sequential) -> None:
    model = nn.Sequential(Bottleneck(16, 8, downsample=shortcut))
    names, x = list(model.state_dict()), torch.randn(2, 16, 6, 6)
    expected = model.eval()(x)
    assert fuse(model).replaced == ["0"]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shortcut", [nn.Identity(), nn.Sequential(nn.Identity()), nn.Sequential()])
def test_a_shortcut_of_identities_is_the_identity(shortcut: nn.Module) -> None:
    model = nn.Sequential(Bottleneck(32, 8, downsample=shortcut))
    assert fuse(model).replaced == ["0"]
    assert model[0].downsample is None


def test_the_report_counts_the_blocks() -> None:
    report = fuse(nn.Sequential(BasicBlock(8, 8), hooked(), nn.Conv2d(8, 8, 1)))
    assert (len(report.replaced), report.blocks) == (1, 2)
    assert str(report).endswith("1 of 2 residual blocks fused")


def test_a_mixed_sequence_keeps_its_own_kind() -> None:
    model = nn.Sequential(nn.Sequential(BasicBlock(8, 8), nn.Conv2d(8, 8, 1)))
    report = fuse(model)
    assert report.replaced == ["0.0"]
    assert report.left == {"0.1": "a convolution outside of a residual block"}
    assert type(model[0]) is nn.Sequential
    assert isinstance(model[0][0], FusedBasicBlock)


class PreActivation(BasicBlock):
    """The same children, another order."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(torch.relu(self.bn2(out)))


def altered(**changes: nn.Module) -> Bottleneck:
    block = Bottleneck(32, 8)
    for name, module in changes.items():
        setattr(block, name, module)
    return block


def hooked() -> Bottleneck:
    block = Bottleneck(32, 8)
    block.conv2.register_forward_hook(lambda *_: None)
    return block


LEFT = {
    "another forward pass": (PreActivation(8, 8), "computes something else"),
    "attention": (TimmBottleneck(32, 8, attention=nn.Sequential(nn.Sigmoid())), "se is a Sequential"),
    "grouped": (altered(conv2=nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)), "conv2 has groups 2"),
    "dilated": (altered(conv2=nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)), "conv2 has dilation (2, 2)"),
    "uneven stride": (altered(conv2=nn.Conv2d(8, 8, 3, (1, 2), padding=1, bias=False)), "conv2 has stride (1, 2)"),
    "reflecting": (
        altered(conv2=nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False)),
        "conv2 has padding (1, 1) of mode reflect",
    ),
    "same padding": (altered(conv2=nn.Conv2d(8, 8, 3, padding="same", bias=False)), "conv2 has padding same"),
    "biased": (altered(conv2=nn.Conv2d(8, 8, 3, padding=1)), "conv2 has a bias"),
    "other norm": (altered(bn2=nn.GroupNorm(2, 8)), "bn2 is a GroupNorm"),
    "other activation": (altered(relu=nn.SiLU()), "relu is a SiLU"),
    "other convolution": (
        altered(conv2=nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1, bias=False))),
        "conv2 is a ParametrizedConv2d",
    ),
    "pooling shortcut": (
        altered(downsample=nn.Sequential(nn.AvgPool2d(1), *projection(32, 32, 1))),
        "downsample is a Sequential of ['AvgPool2d', 'Conv2d', 'BatchNorm2d']",
    ),
    "3x3 shortcut": (
        altered(downsample=nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))),
        "downsample.0 is 3x3 with padding (1, 1)",
    ),
    "hooked": (hooked(), "conv2 has hooks"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_a_block_that_the_kernels_do_not_compute_is_left_with_the_reason(name: str) -> None:
    block, reason = LEFT[name]
    model = nn.Sequential(block)
    report = fuse(model)
    assert model[0] is block
    assert reason in report.left["0"]
    assert f"left   0: {report.left['0']}" in str(report)


def test_a_model_without_blocks_says_so() -> None:
    assert str(fuse(nn.Sequential(nn.Linear(2, 2)))) == "nothing to fuse: the model has no residual blocks"


def test_a_frozen_norm_as_torchvisions_is_fused() -> None:
    class FrozenBatchNorm2d(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.eps = 1e-5
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                self.register_buffer(name, torch.full((channels,), value))

        def forward(self, x: Tensor) -> Tensor:
            scale = (self.weight / (self.running_var + self.eps).sqrt())[:, None, None]
            return x * scale + (self.bias[:, None, None] - self.running_mean[:, None, None] * scale)

    model = nn.Sequential(
        Bottleneck(32, 8, norm=FrozenBatchNorm2d), BasicBlock(32, 32, norm=FrozenBatchNorm2d)
    )
    assert fuse(model).replaced == ["0", "1"]
    assert all(isinstance(block, FusedBlock) for block in model)
    assert isinstance(model[0], FusedBottleneck)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, TimmBottleneck])
@pytest.mark.parametrize("training", [True, False])
def test_on_a_cpu_fused_blocks_train_as_their_modules_do(
    block: type[Bottleneck], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    plain = small(block).train(training)
    fused = copy.deepcopy(plain)
    assert "on a CPU the fused blocks train as plain PyTorch" in str(fuse(fused))
    fused.layer1[0].conv2.register_forward_hook(lambda *_: seen.append(1))
    seen: list[int] = []
    x = activation(2, 3, 19, 17)
    for model in (plain, fused):
        model(x).square().sum().backward()
    assert seen == [1]
    for (name, one), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(plain.named_buffers(), fused.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("late", [False, True])
def test_hooks_on_blocks_and_stages_are_called_and_see_no_probe(late: bool) -> None:
    model, seen = small(BasicBlock).eval(), list[tuple[str, tuple[int, ...]]]()
    x = activation(2, 3, 19, 17)
    if late:
        fuse(model)
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.append((name, tuple(out.shape))))
        for name, module in (("block", model.layer1[0]), ("stage", model.layer1))
    ]
    plain = copy.deepcopy(model)
    expected = plain(x)
    wanted = list(seen)
    seen.clear()
    if not late:
        fuse(model)
    torch.testing.assert_close(model(x), expected)
    assert seen == wanted
    assert [name for name, _ in seen] == ["block", "stage"]
    seen.clear()
    for handle in handles:
        handle.remove()
    model(x)
    assert seen == []


def test_padded_shortcuts_train_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    plain = cifar_resnet(OurBasicBlock, 1)
    fused = copy.deepcopy(plain)
    fuse(fused)
    x = activation(2, 3, 8, 8)
    for model in (plain, fused):
        model(x).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_wrong_channels_are_refused_on_a_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    model = small()
    fuse(model)
    with pytest.raises(ShapeError, match=r"expected an input \[N, 8, H, W\], got \[1, 3, 8, 8\]"):
        model.layer1(torch.zeros(1, 3, 8, 8))


def test_kernels_run_once_the_model_is_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    assert "on a CPU" not in str(fuse(copy.deepcopy(model))), "the interpreter runs them"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    fuse(model)
    with recording() as on_cpu:
        model(activation(2, 3, 16, 16))
    with recording() as on_meta:
        model.to("meta")(torch.zeros(2, 3, 16, 16, device="meta"))
    assert on_meta
    assert not on_cpu
