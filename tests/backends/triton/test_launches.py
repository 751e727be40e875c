"""The launches of a plan, on its own memory, give what its steps give: in INT8 to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rescompile.backends.triton.plan_file import read_plan
from rescompile.backends.triton.reference import ReferenceRunner
from rescompile.errors import BackendError
from rescompile.manifest import Batch
from tests.backends.triton.interpreter import Interpreter
from tests.backends.triton.networks import images
from tests.backends.triton.planned import make_plan, manifest_of

CASES = [
    ("cifar", "int8", False, 3),
    ("basic", "int8", True, 1),
    ("bottleneck", "int8", False, 2),
    ("stride on 1x1", "int8", False, 1),
    ("cifar, full range", "int8", False, 2),
    ("bottleneck, full range", "int8", True, 2),
    ("stride on 1x1, full range", "int8", False, 1),
    ("cifar", "fp16", True, 1),
    ("bottleneck", "fp16", False, 1),
    ("cifar", "fp32", True, 1),
]


@pytest.mark.parametrize(("name", "precision", "pixels", "batch"), CASES)
def test_launches_compute_the_steps(
    name: str, precision: Any, pixels: bool, batch: int, tmp_path: Path
) -> None:
    made = make_plan(tmp_path, name, precision, batch=Batch(batch, batch, batch), pixels=pixels)
    plan = read_plan(tmp_path, manifest_of(made))
    x = images(name, batch, pixels=pixels)
    launched, stepped = Interpreter(tmp_path, plan)(x), ReferenceRunner(tmp_path, plan)(x)
    if precision == "int8":
        np.testing.assert_array_equal(launched, stepped)
    else:
        np.testing.assert_allclose(launched, stepped, atol={"fp16": 5e-3, "fp32": 1e-5}[precision])


def test_the_bits_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "cifar", "int8", batch=Batch(1, 2, 2))
    run, x = Interpreter(tmp_path, plan), images("cifar", 2)
    np.testing.assert_array_equal(run(x), np.concatenate([run(x[:1]), run(x[1:])]))


def test_a_tensor_that_is_overwritten_too_early_is_seen(tmp_path: Path) -> None:
    """The comparison above can fail: with the first block's output placed where its own input still is needed."""
    made = make_plan(tmp_path, "cifar", "int8", batch=Batch(1, 1, 1))
    text = (tmp_path / "plan.json").read_text()
    program = made.programs[0]
    written = [launch.arguments[2] for launch in program.launches[1:3]]
    offsets = [memory.offset for memory in written]  # type: ignore[union-attr]
    assert offsets[0] != offsets[1]
    damaged = text.replace(f'"offset": {offsets[1]},', f'"offset": {offsets[0]},')
    (tmp_path / "plan.json").write_text(damaged)
    plan, x = read_plan(tmp_path), images("cifar", 1)
    assert not np.array_equal(Interpreter(tmp_path, plan)(x), ReferenceRunner(tmp_path, plan)(x))


def test_steps_that_do_not_fit_their_weights_are_an_error(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "cifar", "int8")
    widened = msgspec.structs.replace(plan.steps[3], after=9)
    run = ReferenceRunner(
        tmp_path, msgspec.structs.replace(plan, steps=(*plan.steps[:3], widened, *plan.steps[4:]))
    )
    with pytest.raises(BackendError, match="steps do not fit its weights or these images"):
        run(images("cifar", 1))


def test_a_closed_executor_says_so(tmp_path: Path) -> None:
    run = ReferenceRunner(tmp_path, make_plan(tmp_path, "cifar", "int8"))
    run.close()
    run.close()
    with pytest.raises(BackendError, match="closed"):
        run(images("cifar", 1))
