"""Memory of other packages' arrays on a GPU, as DLPack and the CUDA array interface describe it."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from rescompile.backends.zero_copy import SHARING_ERRORS, SupportsDLPack, type_name
from rescompile.errors import UsageError

LEGACY_STREAM = 1
"""Handle of the default stream, in both protocols and in CUDA."""
_KINDS = {0: "i", 1: "u", 2: "f"}
"""DLPack's type codes of numbers that NumPy has too."""


class ArrayMemory(NamedTuple):
    """C-contiguous memory of a GPU."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object
    """Keeps the memory alive."""
    stream: int | None
    """The writer's stream, which a reader has to wait for; None where it is waited for already."""


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _DType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    """The C structure DLTensor, equal in all versions of the standard."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def describe(given: Any, stream: int, device: int) -> ArrayMemory:
    """The memory of ``given``, an array on a CUDA device.

    An array with DLPack makes ``stream``, a handle, wait for its writer.

    Raises:
        UsageError: it is not on ``device``, not contiguous, of an unknown type, or cannot be shared.
    """
    try:
        if isinstance(given, SupportsDLPack):
            return _from_dlpack(given, stream, device)
        return _from_interface(given)
    except (*SHARING_ERRORS, KeyError) as error:
        raise UsageError(
            f"the {type_name(given)} cannot be shared ({error}); pass a tensor without gradient, or a NumPy array"
        ) from error


def check_device(given: object, found: int, device: int) -> None:
    """Raise a UsageError where ``given`` is on the device ``found``, and not on ``device``."""
    if found != device:
        raise UsageError(
            f"the {type_name(given)} is on CUDA device {found}, but this engine runs on device {device}; copy the "
            f"images there (tensor.to('cuda:{device}') in torch)"
        )


def _from_dlpack(given: SupportsDLPack, stream: int, device: int) -> ArrayMemory:
    check_device(given, given.__dlpack_device__()[1], device)
    capsule = given.__dlpack__(stream=stream)
    # the capsule is not renamed, so it stays the owner and frees the memory when it is dropped
    tensor = DLTensor.from_address(_pointer_of(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.ndim])
    kind, item = _KINDS.get(tensor.dtype.code), tensor.dtype.bits // 8
    if kind is None or tensor.dtype.lanes != 1 or not item:
        raise TypeError("its elements are neither integers nor floating-point numbers")
    strides = tuple(step * item for step in tensor.strides[: tensor.ndim]) if tensor.strides else None
    _check_contiguous(given, shape, strides, item)
    return ArrayMemory(
        (tensor.data or 0) + tensor.byte_offset, shape, np.dtype(f"{kind}{item}"), capsule, None
    )


def _from_interface(given: Any) -> ArrayMemory:
    said = given.__cuda_array_interface__
    if said.get("mask") is not None:
        raise TypeError("it has a mask")
    shape, dtype = tuple(said["shape"]), np.dtype(said["typestr"])
    _check_contiguous(given, shape, said.get("strides"), dtype.itemsize)
    # before version 3 there was no stream: such packages write in the default one
    stream = said.get("stream") if said["version"] >= 3 else LEGACY_STREAM
    return ArrayMemory(said["data"][0], shape, dtype, given, stream)


def _check_contiguous(
    given: object, shape: tuple[int, ...], strides: tuple[int, ...] | None, item: int
) -> None:
    """Refuse memory with gaps or in another order; ``strides`` and ``item`` are in bytes."""
    expected = item
    for size, step in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size != 1 and step != expected and 0 not in shape:
            raise UsageError(
                f"the {type_name(given)} is not contiguous in the order of its axes; pass tensor.contiguous()"
            )
        expected *= size
