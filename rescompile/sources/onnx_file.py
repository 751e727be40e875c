"""Reads the ONNX file that a user gives as the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.errors import GraphError
from rescompile.files import sha256_of
from rescompile.graph.shared.hazards import endless_in, inflated_in
from rescompile.graph.shared.protobuf_size import has_too_many_messages

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model in ``path``, with the weights that lie in files of their own.

    Raises:
        GraphError: the file is missing, cannot be read or is not a valid model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if has_too_many_messages(path.read_bytes(), onnx.ModelProto.DESCRIPTOR):
            raise GraphError(f"{path} has more parts than any network; export the network again")
        model = onnx.load(path)
        onnx.checker.check_model(model)
        words = endless_in(model) or inflated_in(model, model.ByteSize())
    except FileNotFoundError as error:
        missing = error.filename or path
        raise GraphError(f"{missing} does not exist; check the path given to --onnx") from None
    except OSError as error:
        raise GraphError(f"{path} cannot be read ({error.strerror or error}); check the file") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise GraphError(f"{path} is not a valid ONNX model ({reason}); export it again") from None
    if words:
        raise GraphError(f"{path} {words}; export the network without that")
    return model


def sha256_of_onnx(path: Path) -> str:
    """SHA-256 of the file and of the files that hold its weights, if it keeps them outside."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    outline = onnx.load(path, load_external_data=False)
    outside = {
        ExternalDataInfo(tensor).location
        for tensor in outline.graph.initializer
        if uses_external_data(tensor)
    }
    return sha256_of(path, *(path.parent / name for name in sorted(outside)))
