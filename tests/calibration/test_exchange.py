"""Other tools' files: written as those tools write them, read back bit for bit, and refused in one sentence."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import onnxruntime_flatbuffers, onnxruntime_table, tensorrt_cache
from calibration.errors import TableError
from calibration.exchange import (
    Format,
    format_of,
    read_onnxruntime_table,
    read_tensorrt_cache,
    write_onnxruntime_table,
    write_tensorrt_cache,
)
from calibration.imported import Imported, import_table, read_foreign
from calibration.preprocess import IMAGENET
from calibration.scales import MIN_SCALE
from calibration.table import CalibrationTable, read_table
from tests.calibration.test_table import CHECKPOINT, HISTOGRAMS, table

TENSORS = list(HISTOGRAMS)
ENDINGS = [".json", ".cache", ".flatbuffers"]


def imported(path: Path, source: Format | None = None, tensors: list[str] | None = None) -> Imported:
    return import_table(
        read_foreign(path, source or format_of(path)),
        model="resnet18",
        checkpoint_sha256=CHECKPOINT,
        preprocess=IMAGENET,
        tensors=TENSORS if tensors is None else tensors,
    )


def file(folder: Path, content: str | bytes, name: str = "int8.cache") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cache(folder: Path, **scales: str) -> Path:
    return file(folder, "\n".join(["TRT-8601-MinMaxCalibration", *(f"{k}: {v}" for k, v in scales.items())]))


def bits(scales: dict[str, float]) -> dict[str, bytes]:
    return {name: struct.pack(">d", scale) for name, scale in scales.items()}


def exported(folder: Path, content: CalibrationTable, ending: str) -> Path:
    path = folder / f"out{ending}"
    if ending == ".trt":
        write_tensorrt_cache(content, path)
    else:
        write_onnxruntime_table(content, path)
    return path


def test_a_cache_is_a_header_and_the_bits_of_each_scale(tmp_path: Path) -> None:
    made = table()
    write_tensorrt_cache(made, tmp_path / "c", version_header="TRT-8601-MinMaxCalibration")
    header, *lines = (tmp_path / "c").read_text().splitlines()
    assert header == "TRT-8601-MinMaxCalibration"
    assert lines == [f"{name}: {np.float32(s).view(np.uint32):08x}" for name, s in made.scales().items()]
    assert read_tensorrt_cache(tmp_path / "c") == made.scales()
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_the_cache_of_tensorrts_own_documentation_is_read(tmp_path: Path) -> None:
    path = file(tmp_path, "TRT-7000-EntropyCalibration2\r\ndata: 3c008912\r\nconv 1: x: 3C88EDFC\r\n\r\n")
    assert read_tensorrt_cache(path) == {
        "data": pytest.approx(0.0078452, rel=1e-5),
        "conv 1: x": pytest.approx(0.0167151, rel=1e-5),
    }


@pytest.mark.parametrize("ending", [".trt", *ENDINGS])
@pytest.mark.parametrize("method", ["max", "mse"])
def test_export_and_import_give_the_same_scales_bit_for_bit(tmp_path: Path, ending: str, method: str) -> None:
    made = table(method)
    back = imported(exported(tmp_path, made, ending))
    assert bits(back.table.scales()) == bits(made.scales())
    assert (back.rounded_up, back.unused) == ((), ())


@given(st.integers(1, 0x7BFF))
@settings(max_examples=200, deadline=None)
def test_every_fp16_scale_survives_every_form(pattern: int) -> None:
    scale = float(np.array(pattern, np.uint16).view(np.float16))
    amax = {"t": scale * 127}
    assert tensorrt_cache.decode(tensorrt_cache.encode({"t": scale})) == {"t": scale}
    assert onnxruntime_table.decode_json(onnxruntime_table.encode_json(amax)) == amax
    assert onnxruntime_table.decode_lines(onnxruntime_table.encode_lines(amax)) == amax
    assert np.float32(amax["t"]) == amax["t"], "float32 holds 127 times an FP16 number"


@pytest.mark.parametrize("scale", [MIN_SCALE, 65504.0])
def test_the_smallest_and_the_largest_scale_come_back(tmp_path: Path, scale: float) -> None:
    path = cache(tmp_path, t=struct.pack(">f", scale).hex())
    assert imported(path, tensors=["t"]).table.scales() == {"t": scale}


def test_scales_that_fp16_does_not_hold_are_rounded_up(tmp_path: Path) -> None:
    path = cache(tmp_path, a="3c008912", b="3c000000", tiny="00000001")
    back = imported(path, tensors=["a", "b", "tiny"])
    theirs, ours = read_tensorrt_cache(path), back.table.scales()
    assert back.rounded_up == ("a", "tiny")
    assert ours["b"] == theirs["b"]
    assert ours["tiny"] == MIN_SCALE
    assert theirs["a"] < ours["a"] == float(np.nextafter(np.float16(theirs["a"]), np.float16(1)))


def test_an_imported_table_says_where_it_came_from(tmp_path: Path) -> None:
    path = exported(tmp_path, table(), ".trt")
    made = imported(path).table
    assert made.method == "tensorrt-cache"
    assert (made.model, made.checkpoint_sha256, made.preprocess) == ("resnet18", CHECKPOINT, IMAGENET)
    assert made.images.source == "out.trt"
    assert made.images.fingerprint == read_foreign(path, "tensorrt").sha256
    made.write(tmp_path / "t.json")
    assert read_table(tmp_path / "t.json") == made
    with pytest.raises(TableError, match="no thresholds for mse, only tensorrt-cache"):
        made.with_method("mse")
    assert imported(exported(tmp_path, table(), ".json")).table.method == "onnxruntime-table"


def test_tensors_of_the_file_that_are_not_used_are_told(tmp_path: Path) -> None:
    back = imported(exported(tmp_path, table(), ".trt"), tensors=["layer1.0", "input"])
    assert list(back.table.tensors) == ["layer1.0", "input"], "the network's order"
    assert back.unused == ("layer1.0.conv1",)


def test_missing_tensors_are_named_beside_those_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(TableError) as refused:
        imported(exported(tmp_path, table(), ".json"), tensors=["input", "Input", "conv9"])
    assert "no scale for 2 of the network's 3 quantized tensors (Input, conv9)" in str(refused.value)
    assert "layer1.0.conv1, layer1.0" in str(refused.value)


def ranges_of_onnxruntime(folder: Path) -> dict[str, float]:
    """Files as ONNX Runtime's own functions write them; gives what they mean."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    from onnxruntime.quantization.quant_utils import write_calibration_table

    ends: dict[str, Any] = {
        "input": calibrate.TensorData(lowest=np.float32(-2.64), highest=np.float32(2.64)),
        "layer1.0": calibrate.TensorData(lowest=np.array(0, np.float32), highest=np.array([3.3], np.float32)),
    }
    write_calibration_table(ends, str(folder))
    if hasattr(calibrate, "save_tensors_data"):
        made = calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, ends)
        calibrate.save_tensors_data(made, folder / "saved.json")
    return {"input": float(np.float32(2.64)), "layer1.0": float(np.float32(3.3))}


def test_tables_of_onnxruntimes_own_functions_are_read(tmp_path: Path) -> None:
    expected = ranges_of_onnxruntime(tmp_path)
    found = {path.name: read_onnxruntime_table(path) for path in tmp_path.iterdir()}
    assert {"calibration.json", "calibration.cache", "calibration.flatbuffers"} <= set(found)
    for name, ranges in found.items():
        assert ranges == pytest.approx(expected, rel=1e-7), name
        assert format_of(tmp_path / name) == "onnxruntime"


def test_our_lines_and_flatbuffers_say_what_onnxruntimes_say(tmp_path: Path) -> None:
    ranges_of_onnxruntime(tmp_path)
    ranges = read_onnxruntime_table(tmp_path / "calibration.cache")
    assert onnxruntime_table.encode_lines(ranges) == (tmp_path / "calibration.cache").read_text()
    assert onnxruntime_flatbuffers.decode(onnxruntime_flatbuffers.encode(ranges)) == ranges


def test_onnxruntime_loads_our_json(tmp_path: Path) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    if not hasattr(calibrate, "load_tensors_data"):
        pytest.skip("this ONNX Runtime has no load_tensors_data")
    made = table()
    loaded = calibrate.load_tensors_data(exported(tmp_path, made, ".json"))
    for name, scale in made.scales().items():
        lowest, highest = loaded[name].range_value
        assert (float(lowest), float(highest)) == (-127 * scale, 127 * scale)


def test_ranges_of_older_versions_are_pairs(tmp_path: Path) -> None:
    path = file(tmp_path, '{"input": [-3.5, 2], "b": [[0.0], {"data": [0.5]}]}', "old.json")
    assert read_onnxruntime_table(path) == {"input": 3.5, "b": 0.5}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the first line is ''"),
        ("hello\n", "the first line is 'hello', .* begins like TRT-101300-EntropyCalibration2"),
        ("TRT-8601-EntropyCalibration2\ninput 3c008912\n", "line 2 is 'input 3c008912', not a tensor"),
        ("TRT-8601-EntropyCalibration2\ninput: 3c0089", "line 2 .* eight hexadecimal digits: .* damaged"),
        ("TRT-8601-EntropyCalibration2\ninput: 3c00891g", "line 2 .* eight hexadecimal digits"),
        ("TRT-8601-EntropyCalibration2\na: 3c008912\n\na: 3c008912", "line 4 names tensor 'a' a second time"),
        (b"TRT-8601-EntropyCalibration2\n\xff: 3c008912", "is no text"),
    ],
)
def test_what_is_no_cache_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(TableError, match=f"^{tmp_path}/int8.cache.*{words}"):
        read_tensorrt_cache(file(tmp_path, content))


@pytest.mark.parametrize(
    ("bits_", "shown"),
    [("00000000", "0"), ("80000000", "-0"), ("bc008912", "-0.007"), ("7fc00000", "nan"), ("7f800000", "inf")],
)
def test_scales_that_quantize_nothing_are_refused_where_they_are_needed(
    tmp_path: Path, bits_: str, shown: str
) -> None:
    path = cache(tmp_path, good="3c008912", bad=bits_)
    assert imported(path, tensors=["good"]).unused == ("bad",)
    with pytest.raises(TableError, match=f"tensor 'bad' has the scale {shown}.*quantizes nothing"):
        imported(path, tensors=["good", "bad"])


def test_a_scale_beyond_fp16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"int8.cache: tensor 'a': a range of .* no 8-bit scale"):
        imported(cache(tmp_path, a="4b000000"), tensors=["a"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "it is no JSON, or half of it"),
        ("[1]", "it holds no ranges by tensor"),
        ('{"CLS": "TensorsData"}', "it holds no ranges by tensor"),
        ('{"a": [0, 1], "a": [0, 2]}', "it names 'a' a second time"),
        ('{"a": {"lowest": 1}}', "no lowest and highest value of tensor 'a'"),
        ('{"a": [1]}', "no lowest and highest value of tensor 'a'"),
        ('{"a": ["0", true]}', "no lowest and highest value of tensor 'a'"),
        ('{"a": [[0, 0], [1, 2]]}', "tensor 'a' has 2 ranges, one for each channel.*without per_channel"),
        ('{"checkpoint_sha256": "00"}', "calibration.json of rescompile already"),
        ("a 1\nb\n", "line 2 is 'b', not a tensor, a space and a number"),
        ("a 1\nb one\n", "line 2 is 'b one', not a tensor"),
        ("a 1\na 2\n", "line 2 names tensor 'a' a second time"),
        (b"a 1\n\xff 2", "is no text"),
    ],
)
def test_what_is_no_onnxruntime_table_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(TableError, match=f"^{tmp_path}/int8.cache.*{words}"):
        read_onnxruntime_table(file(tmp_path, content))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1" + "0" * 400, "0"])
def test_ranges_that_are_no_positive_number_are_refused(tmp_path: Path, number: str) -> None:
    path = file(tmp_path, f'{{"a": [0, {number}]}}', "t.json")
    with pytest.raises(TableError, match=r"tensor 'a' has the scale .*quantizes nothing"):
        imported(path, tensors=["a"])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for decode in (
        onnxruntime_flatbuffers.decode,
        lambda data: tensorrt_cache.decode(data.decode(errors="replace")),
        lambda data: onnxruntime_table.decode_json(data.decode(errors="replace")),
        lambda data: onnxruntime_table.decode_lines(data.decode(errors="replace")),
    ):
        with suppress(TableError):
            assert isinstance(decode(content), dict)


def test_a_flatbuffer_that_was_cut_is_refused_or_lost_nothing(tmp_path: Path) -> None:
    ranges = {"layer1.0.relu": 1.25, "layer1.1.relu": 2.125}
    whole = onnxruntime_flatbuffers.encode(ranges)
    with pytest.raises(TableError, match=r"no calibration.flatbuffers, or a damaged one"):
        read_onnxruntime_table(file(tmp_path, whole[:-8], "t.flatbuffers"))
    for end in range(len(whole)):
        with suppress(TableError):
            assert onnxruntime_flatbuffers.decode(whole[:end]) == ranges


@pytest.mark.parametrize("content", ["", "hello\n", "a b\n", "1\n2\n"])
def test_a_format_that_cannot_be_told_is_refused(tmp_path: Path, content: str) -> None:
    path = file(tmp_path, content)
    if content.startswith("1"):
        with pytest.raises(TableError, match="line 1 is '1', not a tensor"):
            read_foreign(path, format_of(path))
    else:
        with pytest.raises(TableError, match="begins like no calibration file that is known"):
            format_of(path)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for read in (read_tensorrt_cache, read_onnxruntime_table, format_of):
        with pytest.raises(TableError, match="does not exist"):
            read(tmp_path / "absent")
        with pytest.raises(TableError, match=r"cannot be read .Is a directory"):
            read(tmp_path)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is no first line of a TensorRT calibration cache"):
        write_tensorrt_cache(table(), tmp_path / "c", version_header="TRT")
    with pytest.raises(TableError, match=r"use .json, .cache or .flatbuffers"):
        write_onnxruntime_table(table(), tmp_path / "c.txt")
    with pytest.raises(TableError, match=r"cannot be written .No such file or directory"):
        write_tensorrt_cache(table(), tmp_path / "absent/c")
    with pytest.raises(TableError, match="line break in its name"):
        write_tensorrt_cache(table(histograms={"a\nb": HISTOGRAMS["input"]}), tmp_path / "c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".trt", *ENDINGS])
def test_the_table_of_an_equalized_network_is_not_exported(tmp_path: Path, ending: str) -> None:
    made: Any = SimpleNamespace(
        tensors={
            name: SimpleNamespace(**{**msgspec.structs.asdict(entry), "channel_factors": b"\0\0\x80?"})
            for name, entry in table().tensors.items()
        }
    )
    with pytest.raises(TableError, match=r"belongs to an equalized network.*--effort fast"):
        exported(tmp_path, made, ending)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".trt", *ENDINGS])
def test_a_table_with_tensors_of_full_range_is_not_exported(tmp_path: Path, ending: str) -> None:
    tensors = {name: msgspec.structs.replace(entry, levels=255) for name, entry in table().tensors.items()}
    with pytest.raises(TableError, match=r"whose zero is stored as -128.*--no-full-range"):
        exported(tmp_path, msgspec.structs.replace(table(), tensors=tensors), ending)
    assert not list(tmp_path.iterdir())
