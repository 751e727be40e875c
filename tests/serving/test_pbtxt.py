"""The text that is written is what protobuf's own reader reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from rescompile.serving.pbtxt import to_text
from rescompile.serving.triton_config import (
    DataType,
    Format,
    Kind,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelWarmup,
    WarmupInput,
)
from tests.serving.model_config_proto import parse

IMAGES = ModelInput(name="x", data_type=DataType.TYPE_FP32, format=Format.FORMAT_NCHW, dims=(3, 4, 4))
REQUEST = WarmupInput(data_type=DataType.TYPE_FP32, dims=(3, 4, 4), input_data_file="golden-0")
GOOD = ModelConfig(
    name="net", backend="openvino", default_model_filename="model.xml", max_batch_size=8, input=(IMAGES,),
    output=(ModelOutput(name="y", data_type=DataType.TYPE_FP32, dims=(10,), label_filename="labels.txt"),),
    instance_group=(ModelInstanceGroup(count=2, kind=Kind.KIND_CPU),),
    dynamic_batching=ModelDynamicBatching(max_queue_delay_microseconds=500),
    model_warmup=(ModelWarmup(name="first", batch_size=8, inputs={"x": REQUEST}),),
    parameters={"NUM_STREAMS": ModelParameter(string_value="2")},
)  # fmt: skip


def test_every_field_arrives() -> None:
    read = parse(to_text(GOOD))
    assert (read.name, read.backend, read.max_batch_size) == ("net", "openvino", 8)
    assert (list(read.input[0].dims), read.input[0].format, read.input[0].data_type) == ([3, 4, 4], 2, 11)
    assert (read.output[0].label_filename, list(read.output[0].dims)) == ("labels.txt", [10])
    assert (read.instance_group[0].count, read.instance_group[0].kind) == (2, 2)
    assert read.dynamic_batching.max_queue_delay_microseconds == 500
    assert read.model_warmup[0].inputs["x"].input_data_file == "golden-0"
    assert read.parameters["NUM_STREAMS"].string_value == "2"


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "line\nbreak", "Grüße 猫", "\x01\x7f1"])
def test_any_text_arrives(name: str) -> None:
    assert (
        parse(to_text(dataclasses.replace(GOOD, default_model_filename=name))).default_model_filename == name
    )


def test_none_is_left_out_and_an_empty_message_is_not() -> None:
    assert not parse(to_text(dataclasses.replace(GOOD, dynamic_batching=None))).HasField("dynamic_batching")
    still = ModelDynamicBatching(max_queue_delay_microseconds=0)
    assert parse(to_text(dataclasses.replace(GOOD, dynamic_batching=still))).HasField("dynamic_batching")


def test_booleans_are_words_and_other_kinds_are_refused() -> None:
    @dataclass
    class Flags:
        on: bool
        ratio: float | None = None

    assert to_text(Flags(on=True)) == "on: true\n"
    with pytest.raises(TypeError, match="float has no text form"):
        to_text(Flags(on=True, ratio=0.5))


def changed(kind: object, **values: object) -> object:
    return dataclasses.replace(kind, **values)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "a model has a name"),
        ({"max_batch_size": -1, "dynamic_batching": None, "model_warmup": ()}, "is not negative"),
        ({"input": (), "model_warmup": ()}, "has inputs and outputs"),
        ({"output": ()}, "has inputs and outputs"),
        ({"output": (changed(GOOD.output[0], name=""),)}, "a tensor has a name"),
        ({"output": (changed(GOOD.output[0], dims=()),)}, "a tensor has dimensions"),
        ({"output": (changed(GOOD.output[0], dims=(0,)),)}, "a dimension is positive"),
        ({"input": (changed(IMAGES, dims=(1, 3, 4, 4)),)}, "an image layout has three dimensions"),
        ({"instance_group": (ModelInstanceGroup(count=0, kind=Kind.KIND_CPU),)}, "at least one instance"),
        ({"max_batch_size": 0, "model_warmup": ()}, "only where there are batches"),
        ({"max_batch_size": 4}, "a batch that the model takes"),
        ({"model_warmup": (ModelWarmup(name="w", batch_size=1, inputs={}),)}, "has every input"),
    ],
)
def test_what_the_server_refuses_is_not_made(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
