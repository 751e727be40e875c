"""A plan is read back as it was written; one that lies is refused in a sentence before anything is launched."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescompile.backends.triton.plan import Plan
from rescompile.backends.triton.plan_file import read_plan
from rescompile.backends.triton.weights import read_weights, write_weights
from rescompile.errors import EngineError
from rescompile.manifest import TRITON_PLAN as PLAN
from rescompile.manifest import TRITON_WEIGHTS as WEIGHTS
from rescompile.manifest import Batch, OutputSpec
from tests.backends.triton.planned import make_plan, manifest_of

Body = dict[str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("plan")
    return folder, make_plan(folder, "cifar", "int8")


def changed(written: tuple[Path, Plan], folder: Path, change: Callable[[Body], object]) -> Path:
    body = json.loads((written[0] / PLAN).read_bytes())
    change(body)
    (folder / PLAN).write_text(json.dumps(body))
    return folder


def test_a_plan_comes_back_as_it_was(written: tuple[Path, Plan]) -> None:
    folder, plan = written
    assert read_plan(folder, manifest_of(plan)) == plan


@pytest.mark.parametrize("name", ["cifar", "bottleneck"])
def test_a_plan_that_says_nothing_of_full_range_has_none(name: str, tmp_path: Path) -> None:
    """Plans were written like this before there was full range."""
    plan, new = (
        make_plan(tmp_path, name, "int8"),
        {"margin", "undone", "without_relu", "zero_point", "zero_sums"},
    )

    def silent(body: Body) -> None:
        for step in body["steps"]:
            for field in new | ({"relu"} if step["kind"] == "stem" else set()):
                step.pop(field, None)

    assert read_plan(changed((tmp_path, plan), tmp_path, silent)) == plan


def of_format_1(body: Body) -> None:
    """A plan as it was written when kernels also named their source."""
    body["format"] = 1
    for kernel in body["kernels"]:
        source = {"x_ptr": {"is": "parameter", "index": 0}, "items": {"is": "tuple", "items": []}}
        kernel.update(function="stem.stem_kernel", source=source)


def test_a_plan_of_an_older_version_is_read(written: tuple[Path, Plan], tmp_path: Path) -> None:
    plan = read_plan(changed(written, tmp_path, of_format_1), manifest_of(written[1]))
    assert plan.programs == written[1].programs
    assert [kernel.file for kernel in plan.kernels] == [kernel.file for kernel in written[1].kernels]


def test_the_fields_of_an_older_version_are_none_of_this_one(
    written: tuple[Path, Plan], tmp_path: Path
) -> None:
    def mixed(body: Body) -> None:
        of_format_1(body)
        body["format"] = 2

    with pytest.raises(EngineError, match=r"is damaged .*function"):
        read_plan(changed(written, tmp_path, mixed))


@pytest.mark.parametrize("weight", ["layer1.0.conv1.zero_sums", "input.undo_factor", "input.undo_offset"])
def test_a_plan_lists_what_a_full_range_needs(weight: str, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "cifar, full range", "int8")
    folder = changed((tmp_path, plan), tmp_path, lambda body: body["weights"].pop(weight))
    with pytest.raises(EngineError, match=f"needs the weight '{weight}', which the plan does not list"):
        read_plan(folder)


def launch(body: Body, number: int = 1) -> Body:
    made: Body = body["programs"][0]["launches"][number]
    return made


def arena(body: Body) -> Body:
    """The first address in the arena of that launch."""
    found: Body = next(
        value for value in launch(body)["arguments"] if isinstance(value, dict) and value["in"] == "arena"
    )
    return found


def set_argument(position: int, value: Any) -> Callable[[Body], object]:
    return lambda body: launch(body)["arguments"].__setitem__(position, value)


LIES: dict[str, tuple[Callable[[Body], object], str]] = {
    "another format": (
        lambda b: b.update(format=7),
        "has format 7, this rescompile reads format 2 and older",
    ),
    "no format": (lambda b: b.pop("format"), "is damaged"),
    "an unknown field": (lambda b: b.update(extra=1), "is damaged"),
    "an unknown step": (lambda b: b["steps"][1].update(kind="attention"), "is damaged"),
    "a negative size": (lambda b: b["programs"][0].update(arena_bytes=-1), "is damaged"),
    "an absurd size": (
        lambda b: b["programs"][0].update(arena_bytes=2**39),
        "asks for 549,755,813,888 bytes",
    ),
    "a size beyond all": (lambda b: b["programs"][0].update(arena_bytes=2**70), "is damaged"),
    "no programs": (lambda b: b.update(programs=[]), "must be there and ascend"),
    "a batch twice": (lambda b: b["programs"].append(b["programs"][0]), "must be there and ascend"),
    "batch 0": (lambda b: b["programs"][0].update(batch=0), "is damaged"),
    "a grid of nothing": (lambda b: launch(b).update(grid=[0, 1, 1]), "is damaged"),
    "a grid too wide": (lambda b: launch(b).update(grid=[1, 70000, 1]), "is damaged"),
    "threads": (lambda b: b["kernels"][0].update(threads=2048), "is damaged"),
    "odd threads": (lambda b: b["kernels"][0].update(threads=100), "is damaged"),
    "shared memory": (lambda b: b["kernels"][0].update(shared_bytes=2**30), "is damaged"),
    "no such kernel": (lambda b: launch(b).update(kernel=999), "batch 1, launch 1: there is no kernel 999"),
    "no such step": (lambda b: launch(b).update(step=999), "there is no step 999"),
    "a path": (
        lambda b: b["kernels"][0].update(file="../x.cubin"),
        "'../x.cubin' is not a file of machine code",
    ),
    "another file": (
        lambda b: b["kernels"][0].update(file="model.onnx"),
        "'model.onnx' is not a file of machine code",
    ),
    "too few arguments": (lambda b: launch(b)["arguments"].pop(), "arguments for .* parameters of"),
    "beyond the arena": (lambda b: arena(b).update(offset=2**30), "of an arena of .* bytes"),
    "larger than the arena": (lambda b: arena(b).update(bytes=2**30), "of an arena of .* bytes"),
    "an odd address": (lambda b: arena(b).update(offset=8), "multiples of 256"),
    "a weight that is not there": (
        set_argument(1, {"in": "weights", "name": "nothing"}),
        "argument 1 of .* is the weight 'nothing', which the plan does not list",
    ),
    "a number as address": (set_argument(0, 7), r"is the number 7 in place of \*i8"),
    "an address as number": (set_argument(-1, {"in": "images"}), "is an address in place of i32"),
    "a fraction as number": (set_argument(-1, 0.5), "is the number 0.5 in place of i32"),
    "a number too large": (set_argument(-1, 2**40), "is 1099511627776, which is not an i32"),
    "a tensor from nowhere": (
        lambda b: b["steps"][1].update(input="nothing"),
        "step 'layer1.0.conv1' reads 'nothing', which no step before it makes",
    ),
    "a step without weights": (
        lambda b: b["weights"].pop("layer1.0.conv1.scale"),
        "step 'layer1.0.conv1' needs the weight 'layer1.0.conv1.scale'",
    ),
    "no head": (lambda b: b["steps"].pop(), "do not end in one head"),
    "two heads": (lambda b: b["steps"].append(b["steps"][-1]), "do not end in one head"),
    "no steps": (lambda b: b.update(steps=[]), "do not end in one head"),
    "an unknown place": (set_argument(0, {"in": "registers"}), "is damaged"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_plan_that_lies_is_refused(lie: str, written: tuple[Path, Plan], tmp_path: Path) -> None:
    change, words = LIES[lie]
    with pytest.raises(EngineError, match=words) as caught:
        read_plan(changed(written, tmp_path, change))
    assert "build the engine again" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("outputs", (OutputSpec("logits", (-1, 1), "float32", "NC"),), "the manifest describes another"),
        ("precision", "fp16", "the manifest describes another"),
        ("target", "sm_80", "it is for sm_90, the manifest says sm_80"),
        ("batch", Batch(1, 1, 64), "it takes batches of 1 to 3, the manifest says 1:1:64"),
        ("files", {}, f"the manifest lists no '{WEIGHTS}'"),
    ],
)
def test_a_plan_of_another_engine_is_refused(
    field: str, value: Any, words: str, written: tuple[Path, Plan]
) -> None:
    folder, plan = written
    manifest = msgspec.structs.replace(manifest_of(plan), **{field: value})
    with pytest.raises(EngineError, match=words):
        read_plan(folder, manifest)


def test_a_plan_for_other_images_is_refused(written: tuple[Path, Plan]) -> None:
    folder, plan = written
    manifest = manifest_of(plan)
    wider = msgspec.structs.replace(manifest.inputs[0], shape=(-1, 3, 16, 16))
    with pytest.raises(EngineError, match=r"takes images float32 \[3, 8, 8\], the manifest says .*16, 16"):
        read_plan(folder, msgspec.structs.replace(manifest, inputs=(wider,)))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000], ids=repr)
def test_what_is_no_plan_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_bytes(content)
    with pytest.raises(EngineError, match="is damaged"):
        read_plan(tmp_path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"plan\.json is missing"):
        read_plan(tmp_path)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damage_is_refused_or_leaves_a_plan(
    data: st.DataObject, written: tuple[Path, Plan], tmp_path: Path
) -> None:
    content = bytearray((written[0] / PLAN).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position : position + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=10))
    (tmp_path / PLAN).write_bytes(bytes(content))
    with suppress(EngineError):
        assert read_plan(tmp_path).programs


def test_weights_come_back_as_they_were(written: tuple[Path, Plan]) -> None:
    folder, plan = written
    weights = read_weights(folder, plan)
    assert {name: (str(v.dtype), v.shape) for name, v in weights.items()} == {
        name: (spec.dtype, spec.shape) for name, spec in plan.weights.items()
    }


def _shorter(weights: dict[str, Any]) -> None:
    weights["fc.weight"] = weights["fc.weight"][:1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("fc.weight"), "'fc.weight' is missing, not int8"),
        (_shorter, r"'fc.weight' is int8 \[1, 32\], not int8 \[10, 32\]"),
        (lambda weights: weights.update({"fc.bias": np.zeros(10, np.float16)}), "'fc.bias' is float16"),
    ],
)
def test_weights_of_another_plan_are_refused(
    change: Callable[[dict[str, Any]], object], words: str, written: tuple[Path, Plan], tmp_path: Path
) -> None:
    folder, plan = written
    weights = read_weights(folder, plan)
    change(weights)
    write_weights(tmp_path, weights)
    with pytest.raises(EngineError, match=words):
        read_weights(tmp_path, plan)


@pytest.mark.parametrize("length", [0, 5, 200])
def test_cut_weights_are_refused(length: int, written: tuple[Path, Plan], tmp_path: Path) -> None:
    folder, plan = written
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:length])
    with pytest.raises(EngineError, match=r"weights\.safetensors cannot be read"):
        read_weights(tmp_path, plan)
