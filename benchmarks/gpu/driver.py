"""The part of ``pycuda.driver`` that a plan's runner uses, over ctypes, for machines without pycuda."""

from __future__ import annotations

import ctypes
import math
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends import cuda

_END, _BUFFER, _SIZE = (ctypes.c_void_p(value) for value in (0, 1, 2))
"""CU_LAUNCH_PARAM_END, _BUFFER_POINTER and _BUFFER_SIZE."""


class Error(Exception):
    """The driver refused a call."""


class Driver:
    """The driver under pycuda's names; ``library`` is the driver itself.

    Raises:
        Error: there is no driver.
    """

    Error = Error
    function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def __init__(self, library: Any = None) -> None:
        self.library: Any = library or cuda.driver()
        if self.library is None:
            raise Error("this machine has no CUDA driver")
        self.Context = SimpleNamespace(pop=self._pop, synchronize=lambda: self.call("cuCtxSynchronize"))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            Error: it returned one.
        """
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            words = ctypes.c_char_p()
            self.library.cuGetErrorString(status, ctypes.byref(words))
            raise Error(f"{name} failed: {(words.value or b'unknown error').decode()} ({status})")

    def init(self) -> None:
        """See pycuda."""
        self.call("cuInit", 0)

    def Device(self, index: int) -> Any:  # noqa: N802 - pycuda's name
        """See pycuda."""
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        return SimpleNamespace(retain_primary_context=lambda: _Context(self, device))

    def Stream(self, flags: int = 0) -> Any:  # noqa: N802
        """See pycuda."""
        handle = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(handle), flags)
        return SimpleNamespace(
            handle=handle.value, synchronize=lambda: self.call("cuStreamSynchronize", handle)
        )

    def mem_alloc(self, size: int) -> Memory:
        """See pycuda."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return Memory(self, address.value)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """See pycuda; the array's ``base`` frees its memory."""
        return np.asarray(_Locked(self, shape, np.dtype(dtype)))

    def memset_d8(self, memory: Memory, value: int, size: int) -> None:
        """See pycuda."""
        self.call("cuMemsetD8_v2", memory.pointer, ctypes.c_ubyte(value), ctypes.c_size_t(size))

    def memcpy_htod(self, memory: Memory, array: NDArray[Any]) -> None:
        """See pycuda."""
        self.call("cuMemcpyHtoD_v2", memory.pointer, _host(array), ctypes.c_size_t(array.nbytes))

    def memcpy_htod_async(self, memory: Memory, array: NDArray[Any], stream: Any) -> None:
        """See pycuda."""
        size = ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyHtoDAsync_v2", memory.pointer, _host(array), size, _handle(stream))

    def memcpy_dtod_async(self, memory: Memory, source: int, size: int, stream: Any) -> None:
        """See pycuda."""
        place = ctypes.c_uint64(source)
        self.call("cuMemcpyDtoDAsync_v2", memory.pointer, place, ctypes.c_size_t(size), _handle(stream))

    def memcpy_dtoh_async(self, array: NDArray[Any], memory: Memory, stream: Any) -> None:
        """See pycuda."""
        size = ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyDtoHAsync_v2", _host(array), memory.pointer, size, _handle(stream))

    def module_from_buffer(self, code: bytes) -> Any:
        """See pycuda."""
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), code)
        return SimpleNamespace(get_function=lambda name: _Function(self, module, name))

    def _pop(self) -> None:
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


class Memory:
    """One allocation."""

    def __init__(self, driver: Driver, address: int) -> None:
        self._driver, self._address = driver, address

    def __int__(self) -> int:
        return self._address

    @property
    def pointer(self) -> ctypes.c_uint64:
        """The address in the form that the driver takes."""
        return ctypes.c_uint64(self._address)

    def free(self) -> None:
        """See pycuda."""
        self._driver.call("cuMemFree_v2", self.pointer)


class _Locked:
    """Page-locked memory of the host, as NumPy takes it."""

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._driver, self._address = driver, ctypes.c_void_p()
        size = max(1, math.prod(shape) * dtype.itemsize)
        driver.call("cuMemAllocHost_v2", ctypes.byref(self._address), ctypes.c_size_t(size))
        self.__array_interface__ = {
            "version": 3, "shape": shape, "typestr": dtype.str, "data": (self._address.value, False)
        }  # fmt: skip

    def free(self) -> None:
        self._driver.call("cuMemFreeHost", self._address)


class _Context:
    def __init__(self, driver: Driver, device: ctypes.c_int) -> None:
        self._driver, self._device, self._handle = driver, device, ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), device)

    def push(self) -> None:
        self._driver.call("cuCtxPushCurrent_v2", self._handle)

    def detach(self) -> None:
        self._driver.Context.pop()  # it is on top, as it must be for pycuda
        self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)


class _Function:
    def __init__(self, driver: Driver, module: ctypes.c_void_p, name: str) -> None:
        self._driver, self._handle, self._format = driver, ctypes.c_void_p(), ""
        driver.call("cuModuleGetFunction", ctypes.byref(self._handle), module, name.encode())

    def set_attribute(self, attribute: int, value: int) -> None:
        self._driver.call("cuFuncSetAttribute", self._handle, attribute, value)

    def prepare(self, form: str) -> None:
        self._format = form

    def prepared_async_call(
        self, grid: tuple[int, ...], block: tuple[int, ...], stream: Any, *arguments: Any, shared_size: int
    ) -> None:
        packed = struct.pack(self._format, *arguments)  # native alignment, as the kernel's parameters have
        content = ctypes.create_string_buffer(packed, len(packed))
        size = ctypes.c_size_t(len(packed))
        extra = (ctypes.c_void_p * 5)(
            _BUFFER.value, ctypes.addressof(content), _SIZE.value, ctypes.addressof(size), _END.value
        )
        self._driver.call(
            "cuLaunchKernel", self._handle, *grid, *block, shared_size, _handle(stream), None, extra
        )


def _host(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def _handle(stream: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(stream.handle)
