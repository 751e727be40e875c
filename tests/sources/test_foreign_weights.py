"""Networks with arbitrary names: made here, saved as weights alone, read again, and compared answer by answer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import rescompile
from rescompile.backends.onnxruntime import reference_session
from rescompile.errors import CheckpointError
from rescompile.models.planned import PlannedNetwork, Reading
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.sources.checkpoint import fits_registry, read_weights
from rescompile.sources.foreign_weights import Trial, open_foreign
from rescompile.sources.layouts import read_plan
from rescompile.sources.ordered_layers import UnreadableError

CLASSES = 10
NOTHING = Trial(images=lambda plan, classes: None)


def norm(width):
    layer = nn.BatchNorm2d(width)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.normal_(layer.bias)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 1.5)
    layer.num_batches_tracked += 1
    return layer


class Block(nn.Module):
    """A basic block with names that are not torchvision's."""

    def __init__(self, inputs, outputs, *, shortcut, plain=False, pre=False):
        super().__init__()
        self.plain, self.pre, self.padding, self.stride = plain, pre, shortcut, 1 + (inputs != outputs)
        self.f = nn.Sequential(
            *([norm(inputs), nn.ReLU()] if pre else []),
            nn.Conv2d(inputs, outputs, 3, self.stride, 1),
            norm(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
            *([] if pre else [norm(outputs)]),
        )
        self.skip_conv = (
            nn.Conv2d(inputs, outputs, 1, self.stride) if inputs != outputs and shortcut == "conv" else None
        )

    def forward(self, x):
        y = self.f(x)
        if self.plain:
            return y.relu()
        if self.skip_conv is not None:
            return y + self.skip_conv(self.f[:2](x))
        extra = y.shape[1] - x.shape[1]
        front = {"half": extra // 2, "end": 0, "conv": 0}[self.padding]
        y = y + nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, extra - front))
        return y if self.pre else y.relu()


class OwnNames(nn.Module):
    def __init__(self, *, pre=False, **options):
        super().__init__()
        self.begin = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *([] if pre else [norm(8), nn.ReLU()]))
        widths = [(8, 8), (8, 16), (16, 16)]
        self.body = nn.Sequential(*(Block(a, b, pre=pre, **options) for a, b in widths))
        self.ending = nn.Sequential(norm(16), nn.ReLU()) if pre else nn.Identity()
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.out(self.ending(self.body(self.begin(x))).mean((2, 3)))


FORMS = {
    "plain": {"shortcut": "half", "plain": True},
    "half": {"shortcut": "half"},
    "end": {"shortcut": "end"},
    "pre-activation": {"shortcut": "conv", "pre": True},
}


def images(count=200):
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16), dtype=np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_the_reading_that_answers_right_is_taken_and_the_others_are_said(save, form):
    torch.manual_seed(0)
    network = OwnNames(**FORMS[form]).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(images()))
        network.out.bias -= logits.mean(0)
        expected = network(torch.from_numpy(images())).numpy()
    weights = read_weights(save(network.state_dict()))
    trial = Trial(images=lambda plan, classes: (images(), expected.argmax(1)))
    found = open_foreign(weights, trial, (16, 16))
    session = reference_session(found.graph.SerializeToString(), optimize=True)
    assert np.allclose(session(images(3)), expected[:3], atol=1e-4)
    assert np.allclose(found.reference(images(2)), expected[:2], atol=1e-4)
    assert any("on 200 labelled images" in note and "100.0%" in note for note in found.notes)
    with pytest.raises(CheckpointError, match=r"do not say which function .*--validation-set .*--onnx"):
        open_foreign(weights, NOTHING)


def test_labels_that_fit_no_reading_decide_nothing(save):
    weights = read_weights(save(OwnNames(shortcut="half").state_dict()))
    labels = np.random.default_rng(1).integers(0, CLASSES, 200)
    with pytest.raises(CheckpointError, match=r"200 labelled images do not decide .*check --mean and --std"):
        open_foreign(weights, Trial(images=lambda plan, classes: (images(), labels)), (16, 16))


def state(*, deep=False, groups=1, width=8, gate=False, pooled=False, head=True, channels=3):
    """Weights of a bottleneck network of two stages with torchvision's names."""
    found = {}

    def conv(name, outputs, inputs, kernel):
        found[f"{name}.weight"] = (
            torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel * kernel) ** 0.5
        )

    def batch_norm(name, count):
        layer = norm(count)
        found.update(
            {f"{name}.{key}": t.detach() for key, t in layer.state_dict().items() if "num" not in key}
        )

    if deep:
        for at, (outputs, inputs) in {0: (4, channels), 3: (4, 4), 6: (8, 4)}.items():
            conv(f"conv1.{at}", outputs, inputs, 3)
        batch_norm("conv1.1", 4)
        batch_norm("conv1.4", 4)
    else:
        conv("conv1", 8, channels, 7)
    batch_norm("bn1", 8)
    inputs = 8
    for stage, index in product((1, 2), (0, 1)):
        name, inner, outputs = f"layer{stage}.{index}", width * stage, 16 * stage
        conv(f"{name}.conv1", inner, inputs, 1)
        conv(f"{name}.conv2", inner, inner // groups, 3)
        conv(f"{name}.conv3", outputs, inner, 1)
        for at, count in enumerate((inner, inner, outputs), 1):
            batch_norm(f"{name}.bn{at}", count)
        if gate:
            found |= {
                f"{name}.se.fc1.weight": torch.randn(4, outputs, 1, 1),
                f"{name}.se.fc1.bias": torch.randn(4),
            }
            found |= {f"{name}.se.fc2.weight": torch.randn(outputs, 4, 1, 1)}
            found |= {f"{name}.se.fc2.bias": torch.randn(outputs)}
        if index == 0:
            at = 1 if pooled else 0
            conv(f"{name}.downsample.{at}", outputs, inputs, 1)
            batch_norm(f"{name}.downsample.{at + 1}", outputs)
        inputs = outputs
    if head:
        found |= {"fc.weight": torch.randn(CLASSES, inputs), "fc.bias": torch.randn(CLASSES)}
    return found


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"width": 16}, "wide-resnet14"),
        ({"groups": 4}, "resnext14-4x2d"),
        ({"deep": True}, "resnet14c"),
        ({"deep": True, "pooled": True}, "resnet14d"),
        ({"gate": True}, "seresnet14"),
        ({"head": False}, "resnet14"),
        ({"channels": 1}, "resnet14"),
    ],
)
def test_the_family_is_built_from_torchvisions_names_without_any_images(save, options, name):
    """The order of the file does not matter: safetensors sorts the names."""
    tensors = state(**options)
    weights = read_weights(save(dict(sorted(tensors.items()))))
    assert not fits_registry(weights)
    found = open_foreign(weights, NOTHING, (32, 32))
    assert found.name == name
    picture = np.ones((2, options.get("channels", 3), 32, 32), np.float32)
    expected = PlannedNetwork(read_plan(tensors)[0], Reading())(torch.from_numpy(picture)).detach().numpy()
    assert expected.shape == (2, CLASSES if options.get("head", True) else 32)
    assert np.allclose(found.reference(picture), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.bn2.weight": None}, "belong to no convolution"),
        ({"layer2.0.conv2.weight": torch.ones(16, 5, 3, 3)}, "does not fit the 16 channels in front of it"),
        ({"layer1.0.eca.conv.weight": torch.ones(1, 1, 3)}, "layer1.0.eca.conv.weight belong to no"),
        ({"fc.weight": torch.ones(10, 99)}, "reads 99 values, but the last block has 32 channels"),
    ],
)
def test_layers_that_do_not_join_are_refused_with_the_place(change, words):
    tensors = {name: t for name, t in (state() | change).items() if t is not None}
    with pytest.raises(UnreadableError, match=words):
        read_plan(tensors)


class ConcatPool(nn.Module):
    """fastai's AdaptiveConcatPool2d."""

    def forward(self, x):
        return torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1)


def vector_norm(width):
    layer = nn.BatchNorm1d(width)
    layer.load_state_dict(norm(width).state_dict())
    return layer


def fastai(resnet, *, bias):
    """A network as ``vision_learner`` makes it: the body by numbers, and a head of two layers."""
    body = [resnet.conv1, resnet.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    body += [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]
    head = [
        ConcatPool(), nn.Flatten(), vector_norm(1024), nn.Dropout(0.25), nn.Linear(1024, 32, bias=bias), nn.ReLU(),
        vector_norm(32), nn.Dropout(0.5), nn.Linear(32, CLASSES, bias=bias),
    ]  # fmt: skip
    return nn.Sequential(nn.Sequential(*body), nn.Sequential(*head)).eval()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
def test_fastais_head_answers_as_the_module_does(save, bias, in_order):
    """Try the names of a state_dict, and torchvision's names for the body."""
    torch.manual_seed(0)
    resnet = random_model(find(depth=18, name=None), 7, seed=1)[0]
    network = fastai(resnet, bias=bias)
    state = network.state_dict()
    if in_order:
        body = {name: t for name, t in resnet.state_dict().items() if not name.startswith("fc.")}
        state = dict(sorted((body | {n: t for n, t in state.items() if n.startswith("1.")}).items()))
    found = open_foreign(read_weights(save({"model": state, "opt": {}})), NOTHING, (64, 64))
    assert found.name == "resnet18"
    picture = np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32)
    expected = network(torch.from_numpy(picture)).detach().numpy()
    answer = reference_session(found.graph.SerializeToString(), optimize=True)(picture)
    assert np.allclose(answer, expected, atol=1e-5 * np.abs(expected).max())


def test_a_layer_behind_the_whole_network_is_tried_with_and_without_a_relu(save, resnet18_state):
    behind = {"1.weight": torch.randn(4, 7), "1.bias": torch.randn(4)}
    weights = read_weights(save({f"0.{name}": t for name, t in resnet18_state.items()} | behind))
    with pytest.raises(CheckpointError, match=r"ReLU in the head; no ReLU in the head.*--validation-set"):
        open_foreign(weights, NOTHING)
    resnet = random_model(find(depth=18, name=None), 7, seed=1)[0].eval()
    pictures = np.random.default_rng(0).standard_normal((100, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        features = resnet(torch.from_numpy(pictures))
        behind["1.bias"] = -(features @ behind["1.weight"].T).mean(0)  # so that every class is answered
        logits = features @ behind["1.weight"].T + behind["1.bias"]
    weights = read_weights(save({f"0.{name}": t for name, t in resnet18_state.items()} | behind))
    trial = Trial(images=lambda plan, classes: (pictures, logits.argmax(1).numpy()))
    found = open_foreign(weights, trial, (32, 32))
    assert np.allclose(found.reference(pictures[:2]), logits[:2].numpy(), atol=1e-3)


@pytest.mark.parametrize("head", [{"neck": 32}, {"1.2": 64, "other.3": 64}])
def test_a_norm_in_the_head_that_nothing_places_is_refused(head):
    norms = {
        f"{name}.{key}": t for name, width in head.items() for key, t in norm(width).state_dict().items()
    }
    last = 32 if "neck" in head else 64
    tensors = state(head=False) | norms | {"out.weight": torch.ones(CLASSES, last)}
    with pytest.raises(UnreadableError, match="nothing says what stands between"):
        read_plan({name: t for name, t in tensors.items() if "num_batches" not in name})


def test_images_in_memory_decide_as_a_folder_does(save, tmp_path):
    torch.manual_seed(0)
    network = OwnNames(shortcut="end").eval()
    pictures = images()
    with torch.no_grad():
        network.out.bias -= network(torch.from_numpy(pictures)).mean(0)
        expected = network(torch.from_numpy(pictures)).numpy()
    path = save(network.state_dict())
    report = rescompile.build(
        path, calibration=pictures[:32], validation=(pictures, expected.argmax(1)), effort="fast",
        backend="onnxruntime", output=tmp_path / "engine", class_names=[f"kind {n}" for n in range(CLASSES)],
        limits=rescompile.Limits(max_relative_rms=10),
    )  # fmt: skip
    assert report.top1_reference == 1
    assert any("zero channels at the end, norms behind convolutions: 100.0%" in note for note in report.notes)
    assert rescompile.load(tmp_path / "engine").manifest.classes[3] == "kind 3"


def test_what_no_batch_has_passed_is_left_out(save):
    network = OwnNames(shortcut="half")
    tensors = network.state_dict()
    spare = nn.BatchNorm2d(5).state_dict()
    tensors = {**tensors, **{f"body.spare.{name}": t for name, t in spare.items()}}
    weights = read_weights(save(tensors))
    assert weights.unused == {"body.spare"}
    assert "body.spare" in read_plan(weights.state_dict, weights.unused)[1][0]
