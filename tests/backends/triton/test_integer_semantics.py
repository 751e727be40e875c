"""Steps compute in INT8 what the deployable graph means, and every difference has one of two reasons.

In real numbers the graph's value in front of a quantizer is v * s_out with

    v = sum(q_in * q_w) * s_in * s_w / s_out + b / s_out + q_res * s_res / s_out

The steps round v to an integer, and so does ONNX Runtime, which executes Q/DQ in fp32. The sum is an exact integer here
and a rounded one there; the products are rounded at other places. Both errors are some millionths of v, so the two
integers differ only where v lies that close to a tie, and then by one. Everything later follows from that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.onnx_in_pytorch import execute
from benchmarks.triton_agreement import agree, explain, in_pytorch, integers
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.triton.lowering.network import Network, lower
from rescompile.backends.triton.step_executor import StepExecutor
from rescompile.backends.triton.steps import Convolution, Stem, Step, writes
from rescompile.graph.full_range import unfold_zero_points
from rescompile.graph.shared.metadata import real_channels
from tests.backends.triton.networks import SIDES, deployable, floats, images

NEAR = 1e-4
"""In units of the output: how close to a tie a value lies where fp32 may round it either way."""
NAMES = list(SIDES)


def unchained(name: str) -> Network:
    """Every convolution a step of its own, so that every tensor of the graph can be seen."""
    return lower(deployable(name, "int8"), (SIDES[name], SIDES[name]))


def walk(made: Network) -> StepExecutor:
    return StepExecutor(made.steps, {key: torch.tensor(values) for key, values in made.weights.items()})


def real(model: onnx.ModelProto, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``tensors`` without constant channels, which a plan does not have."""
    counts = real_channels(model)
    return {name: values[:, : counts.get(name)] for name, values in tensors.items()}


def weighted(made: Network) -> list[Step]:
    return [step for step in made.steps if isinstance(step, Stem | Convolution)]


@pytest.mark.parametrize("name", NAMES)
def test_every_step_rounds_the_graphs_real_value_to_the_nearest(name: str) -> None:
    made, model, x = unchained(name), deployable(name, "int8"), floats(name, 2)
    given = integers(model, [n for s in made.steps for n in writes(s)], x)
    unrounded, tensors, run = (
        execute(model, x, torch.float64, given).unrounded,
        real(model, given),
        walk(made),
    )
    for step in weighted(made):
        (found,) = run.run(step, torch.from_numpy(x), tensors)
        v = real(model, unrounded)[step.output].clamp(-128, 127)
        assert float((found.double() - v).abs().max()) <= 0.5 + NEAR, step.name


@pytest.mark.parametrize("name", NAMES)
def test_a_step_differs_from_onnxruntime_at_ties_alone_and_by_one(name: str) -> None:
    rows = explain(deployable(name, "int8"), floats(name, 2))
    assert len(rows) == len(unchained(name).steps) - 1
    for row in rows:
        assert row.largest_step <= 1, row
        assert row.farthest_from_tie < NEAR, row
        # a shortcut moves integers and changes none
        assert row.differ == 0 or "shortcut" not in row.tensor, row


@pytest.mark.parametrize("name", ["cifar", "bottleneck, full range"])
def test_a_tie_goes_to_the_even_neighbour_as_in_the_graph(name: str) -> None:
    """Every scale a power of two, so that fp32 rounds nothing and ties are exact: no integer may differ."""
    model = onnx.ModelProto()
    model.CopyFrom(deployable(name, "int8"))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name.endswith(".scale"):
            # never a larger one: what is constantly -128 (``graph.constant_channels``) has to stay that
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.exp2(np.floor(np.log2(values))), tensor.name))
        elif tensor.name.endswith(".bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.rint(values * 1024) / 1024, tensor.name))
    made, x = lower(model, (SIDES[name], SIDES[name])), floats(name, 8)
    given = integers(model, [n for s in made.steps for n in writes(s)], x)
    unrounded, tensors, run = (
        execute(model, x, torch.float64, given).unrounded,
        real(model, given),
        walk(made),
    )
    ties = 0
    for step in weighted(made):
        (found,) = run.run(step, torch.from_numpy(x), tensors)
        assert torch.equal(found, tensors[step.output]), step.name
        v = unrounded[step.output]
        ties += int((v - v.floor() == 0.5).sum())
    assert ties > 20


@pytest.mark.parametrize(("precision", "limit"), [("int8", 0.02), ("fp16", 2e-3), ("fp32", 1e-5)])
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_graphs(name: str, pixels: bool, precision: Any, limit: float) -> None:
    model, x = deployable(name, precision, pixels=pixels), images(name, 4, pixels=pixels)
    made = lower(model, (SIDES[name], SIDES[name]))
    expected = reference_session(model.SerializeToString(), optimize=False)(x)
    found = walk(made)(torch.from_numpy(x)).numpy()
    assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("name", ["cifar", "basic", "bottleneck, full range"])
def test_the_control_executes_the_same_graph(name: str, pixels: bool, dtype: torch.dtype) -> None:
    model, x = deployable(name, "int8", pixels=pixels), images(name, 8, pixels=pixels)
    expected = reference_session(model.SerializeToString(), optimize=False)(x)
    for form in (model, unfold_zero_points(model)):
        found = in_pytorch(form, dtype, x)
        assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < 0.02


def test_an_image_whose_class_differs_is_shown_with_its_lead(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(deployable("cifar", "int8").SerializeToString())
    session = reference_session(tmp_path / "model.onnx", optimize=False)

    def second_best(images: NDArray[Any]) -> NDArray[np.float32]:
        logits = session(images)
        best = logits.argmax(axis=1)
        logits[0, best[0]] = logits[0].min() - 1
        return logits

    x = floats("cifar", 4)
    found, logits = agree(tmp_path, x, second_best), session(x)
    (image,) = found.parted
    assert (found.same_class, found.same_logits, image.index) == (0.75, 0.75, 0)
    assert image.lead == pytest.approx(np.sort(logits[0])[-1] - np.sort(logits[0])[-2])
    assert agree(tmp_path, x, session).relative_rms == 0
