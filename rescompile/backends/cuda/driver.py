"""The CUDA driver through ctypes: its library, its calls, and pycuda's interface over it where pycuda is missing."""

from __future__ import annotations

import ctypes
import math
import struct
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import BackendError, BackendUnavailable
from rescompile.optional import require

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_END, _BUFFER, _SIZE = 0, 1, 2  # CU_LAUNCH_PARAM_END, _BUFFER_POINTER and _BUFFER_SIZE


class DriverError(BackendError):
    """The CUDA driver refused a call."""


class Cuda(NamedTuple):
    """The CUDA driver as the runners use it."""

    api: Any
    """``pycuda.driver``, or a ``CtypesDriver`` in its place."""
    library: Any
    """The driver's own library, for events, graphs and contexts, which pycuda does not offer."""


def load_library() -> ctypes.CDLL | None:
    """The CUDA driver's library, or None where there is none."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def open_driver() -> Cuda:
    """The CUDA driver through pycuda, or through ctypes where pycuda cannot be imported.

    Raises:
        BackendUnavailable: this machine has no CUDA driver.
    """
    library = load_library()
    if library is None:
        raise BackendUnavailable("this machine has no CUDA driver")
    try:
        return Cuda(require("pycuda.driver", "running an engine through pycuda"), library)
    except BackendUnavailable:
        return Cuda(CtypesDriver(library), library)


def call(library: Any, name: str, *arguments: Any) -> None:
    """Call the function ``name`` of the driver's ``library``.

    Raises:
        DriverError: it returned an error, whose text and number are in the message.
    """
    status = getattr(library, name)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        library.cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode()
        raise DriverError(f"the CUDA driver refuses {name}: {reason} (error {status})")


class CtypesDriver:
    """The part of ``pycuda.driver`` that the runners use, by the same names; every call may raise ``DriverError``."""

    Error = DriverError
    function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def __init__(self, library: Any) -> None:
        self.library = library
        self.Context = SimpleNamespace(pop=self._pop, synchronize=lambda: self.call("cuCtxSynchronize"))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver."""
        call(self.library, name, *arguments)

    def init(self) -> None:
        """Start the driver."""
        self.call("cuInit", 0)

    def Device(self, index: int) -> Any:  # noqa: N802 - pycuda's name
        """The device, whose ``retain_primary_context`` gives its context."""
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), index)
        return SimpleNamespace(retain_primary_context=lambda: _Context(self, device))

    def Stream(self, flags: int = 0) -> _Stream:  # noqa: N802
        """A stream, with its ``handle``."""
        return _Stream(self, flags)

    def mem_alloc(self, size: int) -> _Memory:
        """``size`` bytes on the GPU, until they are freed."""
        return _Memory(self, size)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A page-locked array, whose ``base`` frees its memory."""
        return np.asarray(_PageLocked(self, shape, np.dtype(dtype)))

    def memset_d8(self, memory: Any, value: int, size: int) -> None:
        """Set ``size`` bytes, in the default stream."""
        self.call("cuMemsetD8_v2", _device(memory), ctypes.c_ubyte(value), ctypes.c_size_t(size))

    def memcpy_htod(self, memory: Any, array: NDArray[Any]) -> None:
        """Copy to the GPU and wait."""
        self.call("cuMemcpyHtoD_v2", _device(memory), _host(array), ctypes.c_size_t(array.nbytes))

    def memcpy_htod_async(self, memory: Any, array: NDArray[Any], stream: Any) -> None:
        """Copy to the GPU in ``stream``."""
        size = ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyHtoDAsync_v2", _device(memory), _host(array), size, _handle(stream))

    def memcpy_dtod_async(self, memory: Any, source: int, size: int, stream: Any) -> None:
        """Copy on the GPU in ``stream``."""
        length = ctypes.c_size_t(size)
        self.call("cuMemcpyDtoDAsync_v2", _device(memory), _device(source), length, _handle(stream))

    def memcpy_dtoh_async(self, array: NDArray[Any], memory: Any, stream: Any) -> None:
        """Copy from the GPU in ``stream``."""
        size = ctypes.c_size_t(array.nbytes)
        self.call("cuMemcpyDtoHAsync_v2", _host(array), _device(memory), size, _handle(stream))

    def module_from_buffer(self, code: bytes) -> _Module:
        """Load machine code."""
        return _Module(self, code)

    def _pop(self) -> None:
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


class _Context:
    """The primary context of a device."""

    def __init__(self, driver: CtypesDriver, device: ctypes.c_int) -> None:
        self._driver, self._device, self._context = driver, device, ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def push(self) -> None:
        self._driver.call("cuCtxPushCurrent_v2", self._context)

    def detach(self) -> None:
        self._driver.Context.pop()  # as with pycuda it is on top of the stack
        self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)


class _Stream:
    """A stream, destroyed with the object."""

    def __init__(self, driver: CtypesDriver, flags: int) -> None:
        made = ctypes.c_void_p()
        driver.call("cuStreamCreate", ctypes.byref(made), flags)
        self._driver, self.handle = driver, made.value or 0

    def synchronize(self) -> None:
        self._driver.call("cuStreamSynchronize", _handle(self))

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._driver.library.cuStreamDestroy_v2(_handle(self))


class _Memory:
    """Memory of the GPU, until it is freed."""

    def __init__(self, driver: CtypesDriver, size: int) -> None:
        address = ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._driver, self._address = driver, address.value

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._driver.call("cuMemFree_v2", _device(self))


class _PageLocked:
    """Page-locked memory of the host as NumPy takes it, until it is freed."""

    def __init__(self, driver: CtypesDriver, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._driver, self._address = driver, ctypes.c_void_p()
        size = max(1, math.prod(shape) * dtype.itemsize)
        driver.call("cuMemAllocHost_v2", ctypes.byref(self._address), ctypes.c_size_t(size))
        self.__array_interface__ = {
            "version": 3, "shape": shape, "typestr": dtype.str, "data": (self._address.value, False)
        }  # fmt: skip

    def free(self) -> None:
        self._driver.call("cuMemFreeHost", self._address)


class _Module:
    """Machine code, unloaded with the object; its functions hold it."""

    def __init__(self, driver: CtypesDriver, code: bytes) -> None:
        self.driver, self.handle = driver, ctypes.c_void_p()
        driver.call("cuModuleLoadData", ctypes.byref(self.handle), code)

    def get_function(self, name: str) -> _Function:
        return _Function(self, name)

    def __del__(self) -> None:
        if self.handle:
            self.driver.library.cuModuleUnload(self.handle)


class _Function:
    def __init__(self, module: _Module, name: str) -> None:
        self._module, self._handle, self._format = module, ctypes.c_void_p(), ""
        module.driver.call("cuModuleGetFunction", ctypes.byref(self._handle), module.handle, name.encode())

    def set_attribute(self, attribute: int, value: int) -> None:
        self._module.driver.call("cuFuncSetAttribute", self._handle, attribute, value)

    def prepare(self, form: str) -> None:
        """Say how arguments are packed, in the words of ``struct``."""
        self._format = form

    def prepared_async_call(
        self, grid: tuple[int, ...], block: tuple[int, ...], stream: Any, *arguments: Any, shared_size: int
    ) -> None:
        packed = struct.pack(self._format, *arguments)  # native alignment, as the kernel's parameters have
        content, size = ctypes.create_string_buffer(packed, len(packed)), ctypes.c_size_t(len(packed))
        extra = (ctypes.c_void_p * 5)(_BUFFER, ctypes.addressof(content), _SIZE, ctypes.addressof(size), _END)
        launch = (self._handle, *grid, *block, shared_size, _handle(stream), None, extra)
        self._module.driver.call("cuLaunchKernel", *launch)


def _device(memory: Any) -> ctypes.c_uint64:
    return ctypes.c_uint64(int(memory))


def _host(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def _handle(stream: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(stream.handle)
