"""Images in other packages' memory, taken as arrays without a copy."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import UsageError


@runtime_checkable
class SupportsDLPack(Protocol):
    """A tensor of any package, a torch tensor for one."""

    def __dlpack__(self, **options: Any) -> Any:
        """Its memory as a DLPack capsule."""
        ...

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device that holds it."""
        ...


def as_array(given: object) -> Any:
    """``given`` as a NumPy array over the same memory where it speaks DLPack, else ``given`` itself.

    Raises:
        UsageError: the tensor is not on the CPU, or cannot be shared.
    """
    if isinstance(given, np.ndarray) or not isinstance(given, SupportsDLPack):
        return given
    kind = f"{type(given).__module__}.{type(given).__name__}"
    try:
        return np.from_dlpack(given)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"the {kind} cannot be shared ({error}); pass a tensor on the CPU, without gradient, or a NumPy array"
        ) from error


def shareable(images: NDArray[Any]) -> NDArray[Any]:
    """``images``, contiguous, as they are or as a view of the same memory that pretends to be writeable.

    OpenVINO copies read-only arrays, as DLPack gives them, although it only reads its inputs.
    """
    images = np.ascontiguousarray(images)
    if images.flags.writeable:
        return images
    memory: Any = (ctypes.c_char * images.nbytes).from_address(images.ctypes.data)
    memory.owner = images  # whoever holds the view holds what it looks at
    return np.frombuffer(memory, images.dtype).reshape(images.shape)
