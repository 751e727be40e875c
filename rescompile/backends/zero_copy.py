"""Arrays of other packages, taken as images without a copy."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import UsageError

CUDA = 2
"""DLPack's type of CUDA devices."""
SHARING_ERRORS = (BufferError, RuntimeError, TypeError, ValueError)
"""Errors that packages raise where a tensor cannot be shared."""


@runtime_checkable
class SupportsDLPack(Protocol):
    """A tensor of any package, such as torch."""

    def __dlpack__(self, **options: Any) -> Any:
        """The tensor's memory as a DLPack capsule."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Type and number of the device that holds it."""
        ...


@runtime_checkable
class SupportsCudaArray(Protocol):
    """An array in a GPU's memory of any package, such as Numba or CuPy."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Address, shape, type and stream of the array."""
        ...


class Ready(Protocol):
    """The moment from which memory may be read."""

    def make_wait(self, stream: int) -> None:
        """Let later work of ``stream``, a handle, wait for it."""
        ...


@dataclass(frozen=True)
class DeviceImages:
    """C-contiguous images [N, ...] in GPU memory of another package."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object
    """Keeps the memory alive."""
    ready: Ready

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, stop: int) -> DeviceImages:
        """Images ``start`` to ``stop``, or to the last one, without a copy."""
        begin = start * self.nbytes // len(self)
        shape = (min(stop, len(self)) - start, *self.shape[1:])
        return replace(self, address=self.address + begin, shape=shape)


def on_cuda(given: object) -> bool:
    """Whether ``given`` is an array in the memory of a CUDA device."""
    if isinstance(given, SupportsDLPack):
        try:
            return given.__dlpack_device__()[0] == CUDA
        except SHARING_ERRORS:
            return False  # asking for its memory then gives the reason
    return hasattr(given, "__cuda_array_interface__")


def type_name(given: object) -> str:
    """Full name of the type of ``given``, for messages."""
    return f"{type(given).__module__}.{type(given).__name__}"


def as_array(given: object) -> Any:
    """``given`` as a NumPy array over the same memory where it supports DLPack, else ``given`` itself.

    Raises:
        UsageError: the tensor is not on the CPU, or cannot be shared.
    """
    if isinstance(given, np.ndarray):
        return given
    if on_cuda(given):
        raise UsageError(
            f"the {type_name(given)} is on a CUDA device, but this engine runs on the CPU; copy the images to the CPU "
            "(tensor.cpu() in torch)"
        )
    if not isinstance(given, SupportsDLPack):
        return given
    try:
        return np.from_dlpack(given)
    except SHARING_ERRORS as error:
        raise UsageError(
            f"the {type_name(given)} cannot be shared ({error}); pass a tensor on the CPU, without gradient, or a "
            "NumPy array"
        ) from error


def writable_view(images: NDArray[Any]) -> NDArray[Any]:
    """``images`` as contiguous memory that claims to be writeable, without a copy where they are contiguous.

    OpenVINO copies read-only arrays, which DLPack gives, although it only reads its inputs.
    """
    images = np.ascontiguousarray(images)
    if images.flags.writeable:
        return images
    memory: Any = (ctypes.c_char * images.nbytes).from_address(images.ctypes.data)
    memory.owner = images  # the view keeps the memory alive
    return np.frombuffer(memory, images.dtype).reshape(images.shape)
