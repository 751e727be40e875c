"""pycuda and the CUDA driver on the host, honest about time.

Work that is put into a stream is done when a thread waits for the stream, or for a stream that waits for it, and never
before. Memory is poisoned until it is written. So code that forgets to wait, or uses memory again too early, reads
poison. Handles and addresses are larger than 32 bits, as the real ones.

``FakeCuda`` is both ``pycuda.driver`` and the driver's own library; ``cuda(gpu, "pycuda")`` gives a runner both, and
``cuda(gpu, "ctypes")`` the library alone.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.cuda.driver import CtypesDriver, Cuda

POISON = 0x5A
"""Contents of memory before it is written."""
HERE, ELSEWHERE = 0x5555_0000_1000, 0x5555_0000_2000
"""The primary context, and another one."""
NON_BLOCKING = 1


OUT_OF_MEMORY = 2
Through = Literal["pycuda", "ctypes"]
"""Ways by which a runner reaches the driver."""


class Error(Exception):
    """Base of pycuda's errors, with the driver's number."""

    def __init__(self, words: str, status: int = 1) -> None:
        super().__init__(words)
        self.status = status


def status_of(function: Callable[..., object]) -> Callable[..., int]:
    """A function of the driver's library: 0, or the number of the error with which ``function`` failed."""

    @functools.wraps(function)
    def called(*arguments: Any) -> int:
        try:
            function(*arguments)
        except Error as error:
            return error.status
        return 0

    return called


def cuda(gpu: FakeCuda, through: Through = "pycuda") -> Cuda:
    """The driver of ``gpu`` as a runner takes it."""
    return Cuda(gpu if through == "pycuda" else CtypesDriver(gpu.library), gpu.library)


@dataclass(eq=False)
class Memory:
    """One allocation, at an address of its own."""

    gpu: FakeCuda
    address: int
    content: NDArray[np.uint8]
    device: int = 0
    context: int | None = HERE
    foreign: bool = False

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.gpu.require_current()
        self.gpu.memory.remove(self)


class Locked:
    """Page-locked memory, the base of an array."""

    def __init__(self, gpu: FakeCuda, shape: tuple[int, ...], dtype: Any) -> None:
        self.gpu, self.content = (
            gpu,
            np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize, POISON, np.uint8),
        )
        self.__array_interface__ = {
            **self.content.__array_interface__,
            "shape": shape,
            "typestr": np.dtype(dtype).str,
        }
        gpu.locked.append(self)

    def free(self) -> None:
        self.gpu.require_current()
        self.gpu.locked.remove(self)


@dataclass(eq=False)
class Stream:
    """Work that is done when a thread waits for it."""

    gpu: FakeCuda
    handle: int
    work: deque[Any] = field(default_factory=deque)

    def synchronize(self) -> None:
        self.gpu.require_current()
        self.gpu.at_synchronize()
        self.gpu.may_fail("synchronize")
        self.gpu.run(self)


@dataclass(eq=False)
class Mark:
    """A place in a stream, which an event stands for."""

    stream: Stream
    passed: bool = False


@dataclass(frozen=True)
class Wait:
    """An entry that holds a stream back."""

    mark: Mark


class FakeCuda:
    """``pycuda.driver``, and the driver's own functions."""

    Error = Error

    def __init__(self, *, room: int = 1 << 30) -> None:
        self.room = room
        self.memory: list[Memory] = []
        self.locked: list[Locked] = []
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.events: dict[int, Mark | None] = {}
        self.captured: dict[int, list[Callable[[], None]]] = {}
        self.failing: dict[str, int] = {}
        """Functions that fail, with the driver's number."""
        self.working: dict[str, int] = {}
        """Number of calls of a failing function that work first."""
        self.at_synchronize: Callable[[], object] = lambda: None
        self.detached = False
        self.owned: dict[int, Stream] = {}
        """Streams that were made through the library, until they are destroyed."""
        self.Context = SimpleNamespace(pop=self.pop, synchronize=self._synchronize)
        self.library: Any = self
        self._handles, self._local = count(0x7F00_0000_1000, 16), threading.local()
        self._addresses = 0x7F80_0000_0000
        self._lock = threading.RLock()
        self._default = Stream(self, 1)

    # contexts

    def init(self) -> None:
        self.may_fail("init")

    def Device(self, index: int) -> Any:  # noqa: N802 - the library's own name
        assert index == 0
        return SimpleNamespace(retain_primary_context=lambda: self)

    @property
    def stack(self) -> list[int]:
        """Contexts of this thread, the current one last."""
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[int] = self._local.stack
        return stack

    @property
    def depth(self) -> int:
        return len(self.stack)

    def push(self) -> None:
        assert not self.detached
        self.may_fail("push")
        self.stack.append(HERE)

    def pop(self) -> None:
        self.stack.pop()

    def detach(self) -> None:
        self.require_current()
        self.detached = True  # pycuda leaves it on the driver's stack

    def cuCtxGetCurrent(self, found: Any) -> int:  # noqa: N802
        found._obj.value = self.stack[-1] if self.stack else None
        return 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:  # noqa: N802
        if self.stack:  # the context replaces the top of the stack
            self.stack.pop()
        if context.value is not None:
            self.stack.append(context.value)
        return 0

    def require_current(self) -> None:
        assert self.stack[-1:] == [HERE]
        assert not self.detached

    def may_fail(self, name: str) -> None:
        if self.refused(name):
            raise Error(f"cu{name} failed: error {self.failing[name]}", self.failing[name])

    def refused(self, name: str) -> int:
        """The number of the error with which ``name`` fails now, 0 where it works."""
        if self.working.get(name, 0) > 0:
            self.working[name] -= 1
            return 0
        return self.failing.get(name, 0)

    # memory

    def mem_alloc(self, size: int) -> Memory:
        self.require_current()
        self.may_fail("mem_alloc")
        if size > self.room:
            raise Error("cuMemAlloc failed: out of memory", OUT_OF_MEMORY)
        self.room -= size
        made = Memory(self, self._addresses, np.full(size, POISON, np.uint8))
        self._addresses += -(-size // 256) * 256 + 4096
        self.memory.append(made)
        return made

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        self.require_current()
        self.may_fail("pagelocked_empty")
        return np.asarray(Locked(self, shape, dtype))

    def at(self, address: int, size: int | None = None) -> NDArray[np.uint8]:
        """The bytes from ``address`` on, in memory that is still there."""
        for memory in self.memory:
            begin = address - memory.address
            if 0 <= begin < len(memory.content) and begin + (size or 0) <= len(memory.content):
                return memory.content[begin:][:size]
        raise AssertionError(f"{address} is not an address of this GPU")

    def cuPointerGetAttribute(self, found: Any, attribute: int, address: ctypes.c_void_p) -> int:  # noqa: N802
        begin = address.value or 0
        for memory in self.memory:
            if memory.address <= begin < memory.address + len(memory.content):
                found._obj.value = {1: memory.context, 9: memory.device}[attribute]
                return 0
        return 1

    def memset_d8(self, memory: Memory | int, value: int, size: int) -> None:
        self.require_current()
        self.enqueue(self._default, lambda: self.at(int(memory), size).fill(value))

    def memcpy_htod(self, memory: Memory | int, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        self.may_fail("memcpy_htod")
        staged = array.reshape(-1).view(np.uint8).copy()
        self.enqueue(self._default, lambda: np.copyto(self.at(int(memory), len(staged)), staged))

    def memcpy_htod_async(self, memory: Memory | int, array: NDArray[Any], stream: Stream) -> None:
        source = self._bytes_of(array)
        self.may_fail("memcpy_htod_async")
        self.enqueue(stream, lambda: np.copyto(self.at(int(memory), len(source)), source))

    def memcpy_dtoh_async(self, array: NDArray[Any], memory: Memory | int, stream: Stream) -> None:
        target = self._bytes_of(array)
        self.may_fail("memcpy_dtoh_async")
        target[...] = POISON
        self.enqueue(stream, lambda: np.copyto(target, self.at(int(memory), len(target))))

    def memcpy_dtod_async(self, target: Memory | int, source: int, size: int, stream: Stream) -> None:
        self.require_current()
        self.may_fail("memcpy_dtod_async")
        self.enqueue(stream, lambda: np.copyto(self.at(int(target), size), self.at(source, size)))

    def _bytes_of(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        """An array in page-locked memory: others would be copied in the caller's time."""
        self.require_current()
        assert array.flags.c_contiguous
        return self._locked_bytes(array.ctypes.data, array.nbytes)

    def _locked_bytes(self, begin: int, size: int) -> NDArray[np.uint8]:
        for locked in self.locked:
            start = begin - locked.content.ctypes.data
            if start >= 0 and start + size <= len(locked.content):
                return locked.content[start : start + size]
        raise AssertionError("the memory is not page-locked")

    # streams and events

    def Stream(self, flags: int) -> Stream:  # noqa: N802
        self.require_current()
        self.may_fail("Stream")
        assert flags == NON_BLOCKING
        return self.make_stream()

    def make_stream(self) -> Stream:
        """A new stream."""
        made = Stream(self, next(self._handles))
        self.streams[made.handle] = made
        return made

    def enqueue(self, stream: Stream, work: Any) -> None:
        with self._lock:
            self.captured.get(stream.handle, stream.work).append(work)

    def run(self, stream: Stream, until: Mark | None = None) -> None:
        """Do the work of ``stream``, all of it or that before ``until``."""
        with self._lock:
            while stream.work:
                item = stream.work.popleft()
                if isinstance(item, Mark):
                    item.passed = True
                    if item is until:
                        return
                elif not isinstance(item, Wait):
                    item()
                elif not item.mark.passed:
                    self.run(item.mark.stream, item.mark)

    def mark(self, handle: int) -> Mark:
        """The place that the stream ``handle`` has come to."""
        stream = self._stream(handle)
        made = Mark(stream)
        self.enqueue(stream, made)
        return made

    def wait(self, handle: int, mark: Mark) -> None:
        self.enqueue(self._stream(handle), Wait(mark))

    def pending(self) -> Iterator[Stream]:
        """Streams with work that is not done."""
        return (stream for stream in self.streams.values() if stream.work)

    def cuEventCreate(self, made: Any, flags: int) -> int:  # noqa: N802
        self.require_current()
        error = self.refused("cuEventCreate")
        if not error:
            made._obj.value = next(self._handles)
            self.events[made._obj.value] = None
        return error

    def cuEventRecord(self, event: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:  # noqa: N802
        self.require_current()
        error = self.refused("cuEventRecord")
        if not error:
            assert event.value in self.events
            self.events[event.value] = self.mark(stream.value or 0)
        return error

    def cuStreamWaitEvent(self, stream: ctypes.c_void_p, event: ctypes.c_void_p, flags: int) -> int:  # noqa: N802
        self.require_current()
        error = self.refused("cuStreamWaitEvent")
        mark = self.events[event.value or 0]
        assert mark is not None
        if not error:
            self.wait(stream.value or 0, mark)
        return error

    def cuEventDestroy_v2(self, event: ctypes.c_void_p) -> int:  # noqa: N802
        self.require_current()
        del self.events[event.value or 0]
        return 0

    def _stream(self, handle: int) -> Stream:
        return self._default if handle == self._default.handle else self.streams[handle]

    def _synchronize(self) -> None:
        self.require_current()
        for stream in (self._default, *self.streams.values()):
            self.run(stream)

    # the library's functions that do what pycuda's do

    def cuGetErrorString(self, status: int, words: Any) -> int:  # noqa: N802
        words._obj.value = {OUT_OF_MEMORY: b"out of memory"}.get(status)
        return 0

    @status_of
    def cuInit(self, flags: int) -> None:  # noqa: N802
        self.init()

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        assert index == 0
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = HERE
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        assert not self.detached
        self.detached = True
        return 0

    @status_of
    def cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> None:  # noqa: N802
        assert context.value == HERE
        self.push()

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        self.pop()
        return 0

    def cuCtxSynchronize(self) -> int:  # noqa: N802
        self.Context.synchronize()
        return 0

    @status_of
    def cuStreamCreate(self, stream: Any, flags: int) -> None:  # noqa: N802
        made = self.Stream(flags)
        stream._obj.value = made.handle
        self.owned[made.handle] = made

    @status_of
    def cuStreamSynchronize(self, stream: ctypes.c_void_p) -> None:  # noqa: N802
        self._stream(stream.value or 0).synchronize()

    def cuStreamDestroy_v2(self, stream: ctypes.c_void_p) -> int:  # noqa: N802
        del self.owned[stream.value or 0]
        return 0

    @status_of
    def cuMemAlloc_v2(self, address: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        address._obj.value = int(self.mem_alloc(size.value))

    def cuMemFree_v2(self, address: ctypes.c_uint64) -> int:  # noqa: N802
        next(memory for memory in self.memory if memory.address == address.value).free()
        return 0

    @status_of
    def cuMemAllocHost_v2(self, address: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        address._obj.value = self.pagelocked_empty((size.value,), np.uint8).ctypes.data

    def cuMemFreeHost(self, address: ctypes.c_void_p) -> int:  # noqa: N802
        next(locked for locked in self.locked if locked.content.ctypes.data == address.value).free()
        return 0

    def cuMemsetD8_v2(self, address: ctypes.c_uint64, value: Any, size: ctypes.c_size_t) -> int:  # noqa: N802
        self.memset_d8(address.value, value.value, size.value)
        return 0

    @status_of
    def cuMemcpyHtoD_v2(self, address: Any, source: Any, size: ctypes.c_size_t) -> None:  # noqa: N802
        content = np.frombuffer(ctypes.string_at(source.value, size.value), np.uint8)
        self.memcpy_htod(address.value, content)

    @status_of
    def cuMemcpyHtoDAsync_v2(self, address: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        array = self._locked_bytes(source.value, size.value)
        self.memcpy_htod_async(address.value, array, self._stream(stream.value))

    @status_of
    def cuMemcpyDtoDAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        self.memcpy_dtod_async(target.value, source.value, size.value, self._stream(stream.value))

    @status_of
    def cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        array = self._locked_bytes(target.value, size.value)
        self.memcpy_dtoh_async(array, source.value, self._stream(stream.value))

    def nothing_left(self) -> bool:
        """Whether everything was given back, and no thread of this kind has the context."""
        gc.collect()
        mine = [memory for memory in self.memory if not memory.foreign]
        held = [stream for stream in self.streams.values() if not getattr(stream, "foreign", False)]
        return (mine, self.locked, held, self.events, self.depth, self.detached) == ([], [], [], {}, 0, True)


class OnDevice:
    """An array of another package on the GPU; its own stream writes the values when a thread waits for it.

    Args:
        offset: bytes of its address behind a multiple of 256.
    """

    def __init__(self, gpu: FakeCuda, values: NDArray[Any], *, device: int = 0, offset: int = 0) -> None:
        raw = np.full(values.nbytes + 1024, POISON, np.uint8)
        start = -raw.ctypes.data % 256 + offset
        content = raw[start : start + values.nbytes]
        self.gpu, self.device = gpu, device
        self.array = content.view(values.dtype).reshape(values.shape)
        self.memory = Memory(gpu, self.array.ctypes.data, content, device, foreign=True)
        gpu.memory.append(self.memory)
        self.stream: Any = gpu.make_stream()
        self.stream.foreign = True
        array = self.array
        gpu.enqueue(self.stream, lambda: np.copyto(array, values))


class DlpackTensor(OnDevice):
    """An array that supports DLPack; NumPy makes the capsule."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device)

    def __dlpack__(self, *, stream: int) -> Any:
        self.gpu.wait(stream, self.gpu.mark(self.stream.handle))
        return self.array.__dlpack__()


class InterfaceArray(OnDevice):
    """An array with the CUDA array interface, whose entries a test may change."""

    def __init__(self, gpu: FakeCuda, values: NDArray[Any], **options: Any) -> None:
        super().__init__(gpu, values, **options)
        self.said: dict[str, Any] = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.address, False),
            "version": 3,
            "stream": self.stream.handle,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.said
