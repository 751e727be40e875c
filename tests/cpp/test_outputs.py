"""Engines of several outputs: C++ gives Python's feature maps, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rescompile
from rescompile.manifest import MANIFEST, read_manifest
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from tests.cpp.building import Native, blocks, quickly, run
from tests.cpp.hostile import Fields, changed
from tests.cpp.native import Library, NativeError
from tests.cpp.test_logits import images

pytestmark = pytest.mark.slow

OUTPUTS = ("c2", "c3", "c4")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """INT8 backbones of 48x32 pixels, of floats and of bytes, the second with batches of 4 alone."""
    folder = tmp_path_factory.mktemp("backbones")
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), 10, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 48, 32, 3), np.uint8)
    common: dict[str, Any] = {"calibration": pixels, "size": (48, 32), "outputs": OUTPUTS, "effort": "fast"}
    rescompile.build(model, **common, backend="openvino", batch="1:4:8", output=folder / "floats")
    rescompile.build(
        model, **common, backend="openvino", batch="4", input_format="uint8-nhwc", output=folder / "bytes"
    )
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["floats", "bytes"])
def test_all_outputs_are_pythons_to_the_bit(library: Library, backbones: dict[str, Path], name: str) -> None:
    native = library.load(backbones[name])
    with rescompile.load(backbones[name]) as engine:
        for count in (1, 4, 9):
            given = images(engine.manifest, count)
            expected, found = engine(given), native.infer_all(given)
            assert list(found) == list(expected) == list(OUTPUTS)
            for output, values in expected.items():
                assert found[output].shape == values.shape
                assert np.isfinite(values).all()
                np.testing.assert_array_equal(found[output].view(np.uint32), values.view(np.uint32))


def test_the_how_tos_program_prints_the_maps(
    native: Native, backbones: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "CMakeLists.txt").write_text(blocks("cmake")[0])
    (tmp_path / "mine.cpp").write_text(blocks("cpp")[1])
    quickly("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={native.prefix}")
    quickly("cmake", "--build", tmp_path / "build")
    said = [line.split() for line in run(tmp_path / "build/mine", backbones["floats"]).splitlines()]
    assert [line[:4] for line in said] == [
        ["c2", "16", "48", "32"],
        ["c3", "32", "24", "16"],
        ["c4", "64", "12", "8"],
    ]
    with rescompile.load(backbones["floats"]) as engine:
        expected = engine(np.full((2, 3, 48, 32), 0.5, np.float32))
    first = [float(expected[name][1].ravel()[0]) for name in OUTPUTS]
    assert [float(line[4]) for line in said] == pytest.approx(first, rel=1e-4)


def test_outputs_are_described(library: Library, backbones: dict[str, Path]) -> None:
    engine = library.load(backbones["floats"])  # owns the names
    specs = engine.outputs()
    assert [spec.name.decode() for spec in specs] == list(OUTPUTS)
    assert [tuple(spec.shape) for spec in specs] == [(16, 48, 32), (32, 24, 16), (64, 12, 8)]
    assert [(spec.rank, spec.size) for spec in specs] == [(3, 24576), (3, 12288), (3, 6144)]


def test_what_does_not_fit_is_refused_in_words(
    library: Library, engines: dict[str, Path], backbones: dict[str, Path]
) -> None:
    backbone, classifier = library.load(backbones["floats"]), library.load(engines["int8"])
    given = images(read_manifest(backbones["floats"]), 2)
    with pytest.raises(NativeError, match=r"has 3 outputs \(c2, c3, c4\), not 1: call infer_all"):
        backbone(given)
    with pytest.raises(NativeError, match="room for 49151 values of c2, but the answer has 2 times 24576"):
        backbone.infer_all(given, missing=1)
    with pytest.raises(NativeError, match="are float32, but this engine takes uint8"):
        library.load(backbones["bytes"]).infer_all(given)
    logits = images(read_manifest(engines["int8"]), 3)
    np.testing.assert_array_equal(classifier.infer_all(logits)["logits"], classifier(logits))


def _renamed(fields: Fields) -> None:
    fields["outputs"][2]["name"] = "c5"


def _twice(fields: Fields) -> None:
    fields["outputs"][2]["name"] = "c2"


def _swapped(fields: Fields) -> None:
    first, second, third = fields["outputs"]
    fields["outputs"] = [second, first, third]


def _fewer(fields: Fields) -> None:
    del fields["outputs"][2]


def _many(fields: Fields) -> None:
    fields["outputs"] = fields["outputs"] * 22


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_renamed, "it has no output 'c5'"),
        (_twice, "has two outputs named 'c2'"),
        (_swapped, "does not fit the manifest"),
        (_fewer, "it has not one input and 2 outputs"),
        (_many, "`$.outputs` must be a list of 1 to 64 tensors"),
    ],
)
def test_manifests_that_lie_about_outputs_are_refused(
    library: Library, backbones: dict[str, Path], tmp_path: Path, change: Callable[[Fields], None], words: str
) -> None:
    engine = tmp_path / "engine"
    run("cp", "-r", backbones["floats"], engine)
    changed(change)(engine)
    assert json.loads((engine / MANIFEST).read_text("utf-8"))["outputs"]
    with pytest.raises(NativeError) as refused:
        library.load(engine)
    assert words in str(refused.value)
    assert refused.value.code == 2


def test_backbones_under_address_and_undefined_sanitizers(
    sanitized: Path, backbones: dict[str, Path]
) -> None:
    said = run(sanitized / "tools/rescompile-check", *backbones.values(), TBB_ENABLE_SANITIZERS="1")
    assert said.count("good ") == 2
