"""The text that is written is read back by protobuf's own reader."""

from __future__ import annotations

import pytest

from rescompile.serving.pbtxt import Name, map_entries, to_text
from tests.serving.model_config_proto import parse


def test_every_kind_of_field_arrives() -> None:
    read = parse(
        to_text(
            {
                "name": "net",
                "max_batch_size": 8,
                "input": [{"name": "x", "data_type": Name("TYPE_FP32"), "dims": [3, 4, 4]}],
                "output": [{"name": "y"}, {"name": "z"}],
                "parameters": map_entries(
                    {"NUM_STREAMS": {"string_value": "2"}, "OTHER": {"string_value": ""}}
                ),
            }
        )
    )
    assert (read.name, read.max_batch_size) == ("net", 8)
    assert (read.input[0].data_type, list(read.input[0].dims)) == (11, [3, 4, 4])
    assert [output.name for output in read.output] == ["y", "z"]
    assert {key: value.string_value for key, value in read.parameters.items()} == {
        "NUM_STREAMS": "2",
        "OTHER": "",
    }


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "line\nbreak", "Grüße 猫", "\x01\x7f1"])
def test_any_text_arrives(name: str) -> None:
    assert parse(to_text({"default_model_filename": name})).default_model_filename == name


def test_none_is_left_out_and_an_empty_message_is_not() -> None:
    assert not parse(to_text({"dynamic_batching": None})).HasField("dynamic_batching")
    assert parse(to_text({"dynamic_batching": {}})).HasField("dynamic_batching")


def test_booleans_are_words_and_other_kinds_are_refused() -> None:
    assert to_text({"on": True, "off": [False]}) == "on: true\noff: false\n"
    with pytest.raises(TypeError, match="float has no text form"):
        to_text({"ratio": 0.5})
