"""The part of Caffe's protobuf schema that a trained classifier uses, so that Caffe need not be installed."""

from __future__ import annotations

from functools import cache
from typing import Any

_FIELDS: dict[str, str] = {
    "NetParameter": "name=1:string layers=2*:bytes input=3*:string input_dim=4*:int32 input_shape=8*:BlobShape "
    "layer=100*:LayerParameter",
    "LayerParameter": "name=1:string type=2:string bottom=3*:string top=4*:string blobs=7*:BlobProto "
    "transform_param=100:Transformation concat_param=104:Concat convolution_param=106:Convolution "
    "eltwise_param=110:Eltwise inner_product_param=117:InnerProduct pooling_param=121:Pooling "
    "power_param=122:Power relu_param=123:ReLU softmax_param=125:Softmax slice_param=126:Slice "
    "batch_norm_param=139:BatchNorm scale_param=142:Scale input_param=143:Input",
    "BlobProto": "num=1:int32 channels=2:int32 height=3:int32 width=4:int32 data=5*:float shape=7:BlobShape "
    "double_data=8*:double",
    "BlobShape": "dim=1*:int64",
    "Transformation": "scale=1:float=1 crop_size=3:uint32 mean_file=4:string mean_value=5*:float",
    "Concat": "concat_dim=1:uint32=1 axis=2:int32=1",
    "Slice": "slice_dim=1:uint32=1 slice_point=2*:uint32 axis=3:int32=1",
    "Convolution": "pad=3*:uint32 kernel_size=4*:uint32 group=5:uint32=1 stride=6*:uint32 pad_h=9:uint32 "
    "pad_w=10:uint32 kernel_h=11:uint32 kernel_w=12:uint32 stride_h=13:uint32 stride_w=14:uint32 axis=16:int32=1 "
    "dilation=18*:uint32",
    "Eltwise": "operation=1:int32=1 coeff=2*:float",
    "InnerProduct": "axis=5:int32=1 transpose=6:bool",
    "Pooling": "pool=1:int32 kernel_size=2*:uint32 stride=3*:uint32 pad=4*:uint32 kernel_h=5:uint32 kernel_w=6:uint32 "
    "stride_h=7:uint32 stride_w=8:uint32 pad_h=9:uint32 pad_w=10:uint32 global_pooling=12:bool round_mode=13:int32",
    "Power": "power=1:float=1 scale=2:float=1 shift=3:float",
    "ReLU": "negative_slope=1:float",
    "Softmax": "axis=2:int32=1",
    "BatchNorm": "eps=3:float=1e-5",
    "Scale": "axis=1:int32=1",
    "Input": "shape=1*:BlobShape",
}
"""``name=number:type``, ``*`` where it repeats, and a default behind a second ``=``."""


@cache
def net_parameter() -> Any:
    """The message class of a .caffemodel."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    package = "rescompile.caffe"
    file = descriptor_pb2.FileDescriptorProto(name="rescompile_caffe.proto", package=package, syntax="proto2")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for field in fields.split():
            place, _, kind = field.partition(":")
            kind, _, default = kind.partition("=")
            name, _, number = place.partition("=")
            repeated = number.endswith("*")
            added = described.field.add(name=name, number=int(number.rstrip("*")))
            added.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _FIELDS:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                added.type = getattr(kinds, f"TYPE_{kind.upper()}")
            if default:
                added.default_value = default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.NetParameter"))
