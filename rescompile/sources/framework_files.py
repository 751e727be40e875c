"""Files and folders of other frameworks: which reader takes them, and the way for those that none takes."""

from __future__ import annotations

from pathlib import Path

from rescompile.errors import CheckpointError
from rescompile.sources.network import SourceNetwork

_HDF5 = b"\x89HDF\r\n\x1a\n"
_KERAS = {".h5", ".hdf5", ".keras"}
_WAYS = {
    ".t7": "a Torch7 file: load it in PyTorch with the package torchfile, save its weights with torch.save, "
    "and pass those",
    ".pdmodel": "a Paddle program: convert it with paddle2onnx, and pass the ONNX file",
    ".tflite": "a TensorFlow Lite model: convert it with tf2onnx (--tflite), and pass the ONNX file",
    ".mlmodel": "a Core ML model: pass the network that it was converted from",
    ".prototxt": "the structure of a Caffe network alone: pass its .caffemodel, which holds it too",
    ".pb": "a TensorFlow graph: convert it with tf2onnx, and pass the ONNX file",
}
"""Kind of a file, and how to convert it, by suffix."""


def read_framework_file(path: Path, size: tuple[int, int] | None = None) -> SourceNetwork | None:
    """The network in a file of Keras, Caffe or MXNet; None where ``path`` is not one of theirs.

    ``size`` is the input's height and width, for files that leave them open.

    Raises:
        CheckpointError: the file cannot be read, or belongs to a framework whose files have to be converted first.
        BackendUnavailable: the package that reads it is not installed.
    """
    if path.is_dir() and (path / "saved_model.pb").is_file():
        raise CheckpointError(
            f"{path} is a TensorFlow SavedModel: convert it with 'python -m tf2onnx.convert --saved-model {path} "
            "--output model.onnx', or save it from Keras as model.keras, and pass that file"
        )
    suffix = path.suffix.lower()
    if suffix in _WAYS and path.exists():
        raise CheckpointError(f"{path} is {_WAYS[suffix]}")
    if not path.is_file():
        return None
    if suffix in _KERAS or _starts_with(path, _HDF5):
        from rescompile.sources.keras_file import read_keras

        return read_keras(path, size)
    if suffix == ".caffemodel":
        from rescompile.sources.caffe_file import read_caffe

        return read_caffe(path, size)
    if suffix == ".params":
        from rescompile.sources.mxnet_file import read_mxnet

        return read_mxnet(path, size)
    return None


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False
