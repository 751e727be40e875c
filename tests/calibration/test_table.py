from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.errors import CalibrationError, TableError
from calibration.images.builtin import builtin_image_set
from calibration.methods.thresholds import METHODS
from calibration.preprocess import CIFAR, IMAGENET
from calibration.scales import scale_of
from calibration.table import CalibrationTable, make_table, read_table
from calibration.version import VERSION
from tests.calibration.statistics.histograms import histogram_of

CHECKPOINT = "ab" * 32
rng = np.random.default_rng(0)
HISTOGRAMS = {
    "input": histogram_of(rng.uniform(-2, 2.6, 5000)),
    "layer1.0.conv1": histogram_of(np.maximum(rng.normal(size=5000), 0)),
    "layer1.0": histogram_of(rng.laplace(size=5000)),
}


def table(method: str = "mse", **changes: object) -> CalibrationTable:
    arguments = {
        "model": "resnet18",
        "checkpoint_sha256": CHECKPOINT,
        "images": builtin_image_set(5, seed=9),
        "preprocess": IMAGENET,
        **changes,
    }
    histograms = arguments.pop("histograms", HISTOGRAMS)
    return make_table(histograms, method, **arguments)  # type: ignore[arg-type]


def written(folder: Path, content: CalibrationTable | None = None) -> Path:
    path = folder / "calibration.json"
    (content or table()).write(path)
    return path


def test_table_says_where_its_numbers_come_from() -> None:
    made = table("entropy")
    assert (made.method, made.model, made.checkpoint_sha256) == ("entropy", "resnet18", CHECKPOINT)
    assert made.version == VERSION
    assert (made.images.source, made.images.count, made.images.seed) == ("built-in photographs", 5, 9)
    assert made.images.fingerprint == builtin_image_set(5, seed=9).fingerprint
    assert made.preprocess == IMAGENET


@pytest.mark.parametrize("method", METHODS)
def test_chosen_threshold_and_scale_are_those_of_the_method(method: str) -> None:
    made = table(method)
    for name, tensor in made.tensors.items():
        assert tensor.thresholds == {key: compute(HISTOGRAMS[name]) for key, compute in METHODS.items()}
        assert tensor.threshold == tensor.thresholds[method]
        assert tensor.scale == scale_of(tensor.threshold) == made.scales()[name]
        assert (tensor.amax, tensor.minimum) == (HISTOGRAMS[name].amax, HISTOGRAMS[name].minimum)


def test_a_tensor_of_full_range_has_255_steps_with_every_method(tmp_path: Path) -> None:
    made = read_table(written(tmp_path, table("mse", levels={"input": 255}))).with_method("max")
    assert made.levels() == {name: 255 if name == "input" else 127 for name in made.tensors}
    for tensor in made.tensors.values():
        assert tensor.scale == scale_of(tensor.threshold, tensor.levels)


def test_moments_of_the_first_layer_come_back(tmp_path: Path) -> None:
    first = np.random.default_rng(0).normal(size=(28, 27)).astype(np.float32)
    again = read_table(written(tmp_path, table(first=first))).moments()
    assert again is not None
    assert np.array_equal(again, first)
    assert table().moments() is None


@pytest.mark.parametrize("content", [b"\0" * 40, np.full(6, np.nan, "<f4").tobytes()])
def test_damaged_moments_are_refused(content: bytes) -> None:
    with pytest.raises(TableError, match="damaged first_moments"):
        msgspec.structs.replace(table(), first_moments=content).moments()


def test_scales_that_weights_were_trained_for_are_kept(tmp_path: Path) -> None:
    assert table().trained_weight_scales() == {}
    assert b"weight_scales" not in msgspec.json.encode(table())  # tables without them keep their digest
    scales = np.array([0.5, 0.25], "<f4")
    trained = msgspec.structs.replace(table(), weight_scales={"conv1": scales.tobytes()})
    trained = msgspec.structs.replace(trained, sha256=trained.digest())
    found = read_table(written(tmp_path, trained)).trained_weight_scales()
    assert {name: values.tolist() for name, values in found.items()} == {"conv1": [0.5, 0.25]}


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_damaged_weight_scales_are_refused(value: float) -> None:
    stored = {"conv1": np.array([0.5, value], "<f4").tobytes()}
    with pytest.raises(TableError, match="damaged weight_scales of 'conv1'"):
        msgspec.structs.replace(table(), weight_scales=stored).trained_weight_scales()


@pytest.mark.parametrize("method", METHODS)
def test_another_method_needs_no_images(tmp_path: Path, method: str) -> None:
    assert read_table(written(tmp_path)).with_method(method) == table(method)


def test_percentage_that_was_asked_for_is_stored_beside_the_others(tmp_path: Path) -> None:
    made = read_table(written(tmp_path, table("percentile:99")))
    assert set(made.tensors["input"].thresholds) == {*METHODS, "percentile:99"}
    assert made.with_method("mse").with_method("percentile:99") == made


def test_percentage_that_is_not_stored_needs_images() -> None:
    with pytest.raises(
        TableError,
        match=r"no thresholds for percentile:99.5, only max, percentile, percentile:99.9, percentile:99.999",
    ):
        table().with_method("percentile:99.5")


@pytest.mark.parametrize("use", [table, table().with_method])
def test_unknown_method_is_refused(use: object) -> None:
    with pytest.raises(CalibrationError, match="'entropi' is not a calibration method"):
        use("entropi")  # type: ignore[operator]


def test_written_table_reads_back_equal_and_leaves_nothing_else(tmp_path: Path) -> None:
    made = table()
    path = written(tmp_path, made)
    assert read_table(path) == made
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.json"]
    made.with_method("max").write(path)
    assert read_table(path).method == "max"


@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-6e6, max_value=6e6), min_size=1
    )
)
@settings(max_examples=60, deadline=None)
def test_every_float_reads_back_to_the_same_bits(values: list[float]) -> None:
    made = table(histograms={"t": histogram_of(values)})
    tensor = msgspec.json.decode(msgspec.json.encode(made), type=CalibrationTable).tensors["t"]
    before, after = msgspec.to_builtins(made.tensors["t"]), msgspec.to_builtins(tensor)
    assert json.dumps(after) == json.dumps(before)
    assert math.copysign(1, after["minimum"]) == math.copysign(1, before["minimum"])


def test_nothing_observed_makes_no_table() -> None:
    with pytest.raises(CalibrationError, match="nothing was observed"):
        table(histograms={})


def test_range_without_fp16_scale_names_the_tensor() -> None:
    with pytest.raises(CalibrationError, match=r"tensor 'layer4.2': a range of 1e.09 has no 8-bit scale"):
        table(histograms={"layer4.2": histogram_of([1e9])})


def test_table_of_the_same_origin_is_accepted() -> None:
    table().check(checkpoint_sha256=CHECKPOINT, preprocess=IMAGENET, tensors=["input", "layer1.0"])


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (
            {"checkpoint_sha256": "cd" * 32},
            "another checkpoint: .*resnet18 .* abababababab, .* cdcdcdcdcdcd;",
        ),
        ({"preprocess": CIFAR}, "other preprocessing: resize was 256, here it is 32"),
        (
            {"preprocess": msgspec.structs.replace(IMAGENET, std=(0.5, 0.5, 0.5))},
            r"std was \(0.229, 0.224, 0.225\), here it is \(0.5, 0.5, 0.5\)",
        ),
        (
            {"tensors": ["input", "layer2.0", "layer2.1"]},
            r"no range for tensor 'layer2.0' \(2 of 3 are missing\)",
        ),
    ],
)
def test_table_of_another_origin_is_refused(origin: dict[str, object], words: str) -> None:
    asked = {"checkpoint_sha256": CHECKPOINT, "preprocess": IMAGENET, "tensors": ["input"], **origin}
    with pytest.raises(TableError, match=f"{words}.*calibrate again, or pass the table"):
        table().check(**asked)  # type: ignore[arg-type]


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"method": "mse"', '"method": "max"', "was changed after it was made"),
        ('"count": 5', '"count": 6', "was changed after it was made"),
        ('"format": 2', '"format": 1', "has format 1, this version reads format 2: calibrate again"),
        ('"seed": 9', '"seed": "nine"', "not a calibration table, or a damaged one .*int"),
        ('"amax": ', '"amax": -', "not a calibration table, or a damaged one"),
        ('"resize": 256', '"resize": 7', "resize 7 is smaller than crop"),
        ('"model"', '"modell"', "not a calibration table, or a damaged one"),
    ],
)
def test_edited_table_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(TableError, match=words):
        read_table(edited(written(tmp_path), old, new))


def test_every_flipped_digit_that_changes_a_number_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    text = path.read_text()
    digits = [index for index, letter in enumerate(text) if letter.isdigit()]
    for index in digits[:: len(digits) // 60]:
        flipped = text[:index] + ("7" if text[index] != "7" else "3") + text[index + 1 :]
        if json.loads(flipped) == json.loads(text):  # the seventeenth digit of a float may name the same bits
            continue
        path.write_text(flipped)
        with pytest.raises(TableError, match=r"was changed|damaged|has format"):
            read_table(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"{}", b"[1]", b'{"format": 2}', b"\xff\xfe\x00", b'{"format": 2, ']
)
def test_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(TableError, match=r"t\.json is not a calibration table, or a damaged one"):
        read_table(tmp_path / "t.json")


def test_half_of_a_table_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(TableError, match="not a calibration table, or a damaged one"):
        read_table(path)


def test_missing_table_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot be read .No such file.*: pass a calibration.json"):
        read_table(tmp_path / "absent.json")
    with pytest.raises(TableError, match=r"cannot be read .Is a directory"):
        read_table(tmp_path)


def test_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    before = path.read_bytes()

    def full_disk(target: Path, data: bytes) -> int:
        with target.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(TableError, match=r"cannot be written to .*No space left on device.*check the folder"):
        table("max").write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot be written to .*No such file or directory"):
        table().write(tmp_path / "absent" / "t.json")
