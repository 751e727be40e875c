"""Operations and bytes of a block."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import pytest

from rescompile.errors import GraphError
from rescompile.measuring.work import work_of
from rescompile.report import BlockWork


def work(directory: Path, batch: int = 1) -> dict[str, BlockWork]:
    return {block.block: block for block in work_of(onnx.load(directory / "model.onnx"), batch)}


def test_operations_of_a_resnet20_are_those_counted_by_hand(small_engines: dict[str, Path]) -> None:
    found = work(small_engines["fp32"])
    assert list(found) == ["stem", *(f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)), "fc"]
    side = 32 * 32
    assert found["stem"].float_ops == 2 * 27 * 16 * side
    add = 16 * side
    assert found["layer1.0"].float_ops == 2 * (2 * 9 * 16 * 16 * side) + add
    assert found["fc"].float_ops == 2 * 64 * 10 + 64 * 8 * 8
    assert found["layer1.0"].weight_bytes == 4 * 2 * 9 * 16 * 16
    # two convolutions read and write 16 channels each, and the add reads the skip
    assert found["layer1.0"].activation_bytes == 4 * 5 * 16 * side
    assert found["layer1.0"].layers == 2


def test_int8_moves_a_quarter_of_the_bytes_and_computes_in_int8(small_engines: dict[str, Path]) -> None:
    int8, fp32 = (work(small_engines[p])["layer2.1"] for p in ("int8", "fp32"))
    assert int8.bytes * 4 == fp32.bytes
    assert int8.ops == fp32.ops
    assert int8.int8_ops == fp32.float_ops - int8.float_ops > 0.99 * int8.ops


def test_activations_grow_with_the_batch_and_weights_do_not(small_engines: dict[str, Path]) -> None:
    one, four = work(small_engines["int8"]), work(small_engines["int8"], 4)
    for block in one:
        assert four[block].ops == 4 * one[block].ops
        assert four[block].activation_bytes == 4 * one[block].activation_bytes
        assert four[block].weight_bytes == one[block].weight_bytes


def test_half_precision_moves_half_of_the_bytes(small_engines: dict[str, Path]) -> None:
    from rescompile.graph.half import half as halved

    model = onnx.load(small_engines["fp32"] / "model.onnx")
    half, single = {block.block: block for block in work_of(halved(model), 1)}, work(small_engines["fp32"])
    assert half["layer2.1"].bytes * 2 == single["layer2.1"].bytes
    assert {name: block.ops for name, block in half.items()} == {name: b.ops for name, b in single.items()}
    assert half["fc"].weight_bytes * 2 == single["fc"].weight_bytes > 0


def test_a_graph_without_shapes_is_refused(small_engines: dict[str, Path]) -> None:
    model = onnx.load(small_engines["fp32"] / "model.onnx")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Unknown", "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(GraphError, match="is not known"):
        work_of(model, 1)


def test_work_has_a_json_form(small_engines: dict[str, Path]) -> None:
    block = work(small_engines["int8"])["stem"]
    assert msgspec.json.decode(msgspec.json.encode(block), type=BlockWork) == block
