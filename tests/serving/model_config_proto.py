"""The part of Triton Inference Server's ``ModelConfig`` that is written, as a descriptor for protobuf's own reader.

Field names, numbers and types are those of the server's published ``model_config.proto``; the reader refuses any field
that is not named here.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_F = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _F.TYPE_STRING, "int32": _F.TYPE_INT32, "int64": _F.TYPE_INT64,
    "uint32": _F.TYPE_UINT32, "uint64": _F.TYPE_UINT64,
}  # fmt: skip
_ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_BOOL": 1, "TYPE_UINT8": 2, "TYPE_FP16": 10, "TYPE_FP32": 11},
    "ModelInput.Format": {"FORMAT_NONE": 0, "FORMAT_NHWC": 1, "FORMAT_NCHW": 2},
    "ModelInstanceGroup.Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
_MESSAGES = {
    "ModelInput": ["name string 1", "data_type DataType 2", "format ModelInput.Format 3", "dims *int64 4"],
    "ModelOutput": ["name string 1", "data_type DataType 2", "dims *int64 3", "label_filename string 4"],
    "ModelInstanceGroup": ["name string 1", "kind ModelInstanceGroup.Kind 4", "count int32 2", "gpus *int32 3"],
    "ModelDynamicBatching": ["preferred_batch_size *int32 1", "max_queue_delay_microseconds uint64 2"],
    "ModelParameter": ["string_value string 1"],
    "ModelWarmup": ["name string 1", "batch_size uint32 2", "inputs map:ModelWarmup.Input 3", "count uint32 4"],
    "ModelWarmup.Input": ["data_type DataType 1", "dims *int64 2", "input_data_file string 5"],
    "ModelConfig": [
        "name string 1", "platform string 2", "backend string 17", "max_batch_size int32 4", "input *ModelInput 5",
        "output *ModelOutput 6", "dynamic_batching ModelDynamicBatching 11", "instance_group *ModelInstanceGroup 7",
        "default_model_filename string 8", "parameters map:ModelParameter 14", "model_warmup *ModelWarmup 16",
    ],
}  # fmt: skip


def parse(text: str) -> Any:
    """The message in ``text``; raises ParseError for what the schema does not have."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, kind())


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = (made[outer].nested_type if outer else file.message_type).add(name=inner)
        made[name] = message
        for field in fields:
            _add_field(message, name, *field.split())
    for name, values in _ENUMS.items():
        outer, _, inner = name.rpartition(".")
        enum = (made[outer].enum_type if outer else file.enum_type).add(name=inner)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    return file


def _add_field(message: Any, owner: str, name: str, kind: str, number: str) -> None:
    repeated = kind.startswith(("*", "map:"))
    field = message.field.add(
        name=name, number=int(number), label=_F.LABEL_REPEATED if repeated else _F.LABEL_OPTIONAL
    )
    if kind.startswith("map:"):
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", "string", "1")
        _add_field(entry, "", "value", kind[4:], "2")
        field.type, field.type_name = _F.TYPE_MESSAGE, f".inference.{owner}.{entry.name}"
    elif (bare := kind.removeprefix("*")) in _SCALARS:
        field.type = _SCALARS[bare]
    else:
        field.type = _F.TYPE_ENUM if bare in _ENUMS else _F.TYPE_MESSAGE
        field.type_name = f".inference.{bare}"
