"""Paddle's .pdparams files, pickles of NumPy arrays, read without running code in them and without Paddle."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rescompile.errors import CheckpointError, reason_of
from rescompile.sources.checkpoint_size import refuse_inflated, refuse_large_memo

_RECONSTRUCT = np.ndarray((0,)).__reduce__()[0]
_NAMES = {"._mean": ".running_mean", "._variance": ".running_var"}


class _Arrays(pickle.Unpickler):
    """An unpickler that makes arrays and nothing else."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """One of the five names that an array needs."""
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it needs {module}.{name}") from None


def read_pdparams(path: Path) -> dict[str, Tensor]:
    """The weights as a state_dict: PyTorch's names of batch norm statistics, classifiers as [out, in].

    Raises:
        CheckpointError: the file cannot be read, or holds more than arrays.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        refuse_large_memo(content)
        payload = _Arrays(content).load()
        refuse_inflated(payload, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({reason_of(error)}): check the path") from None
    except Exception as error:
        # a damaged pickle can make the unpickler fail with any exception
        raise CheckpointError(
            f"{path} cannot be read as Paddle's weights ({type(error).__name__}: {error}): save them with "
            "paddle.save(model.state_dict(), 'weights.pdparams'), or convert the model with paddle2onnx"
        ) from None
    if not isinstance(payload, dict):
        raise CheckpointError(
            f"{path} holds a {type(payload).__name__}, not Paddle's state_dict: pass the .pdparams"
        )
    arrays = {
        name: value
        for name, value in payload.items()
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }
    return {_torch_name(name): _tensor(array) for name, array in arrays.items() if array.dtype.kind == "f"}


def _torch_name(name: str) -> str:
    for paddle, ours in _NAMES.items():
        if name.endswith(paddle):
            return name.removesuffix(paddle) + ours
    return name


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """``array`` with a linear layer's weights turned from Paddle's [in, out]."""
    return torch.from_numpy(
        np.ascontiguousarray(array.T if array.ndim == 2 else array, array.dtype.newbyteorder("="))
    )
