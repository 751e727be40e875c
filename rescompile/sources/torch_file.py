"""Checkpoint files loaded without running any code in them.

The content decides the format, not the suffix: torch.save's zip archives and older pickles, or safetensors.
"""

from __future__ import annotations

import pickle
import stat
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from rescompile.errors import CheckpointError, reason_of
from rescompile.sources.checkpoint_size import bytes_allowed, refuse_inflated
from rescompile.sources.inert_pickle import load_inert
from rescompile.sources.paddle_file import read_pdparams
from rescompile.sources.sharded import is_index, read_parts, refuse_part

_HOW_TO_SAVE = (
    "in the program that made it, save the weights alone with torch.save(model.state_dict(), 'weights.pth'), "
    "and pass that file"
)
_AGAIN = "download or copy it again"
_COMPRESSED = {
    b"\xfd7zXZ\x00": "xz -d",
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
_HEAD = 128


def read_payload(path: Path) -> object:
    """The content of a checkpoint file as plain Python data, with tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, empty, damaged, of another format, or would run code.
    """
    if is_index(path):
        return read_parts(path, _payload)
    refuse_part(path)
    return _payload(path)


def _payload(path: Path) -> object:
    """The content of one file."""
    head = _head(path)
    if path.suffix == ".pdparams":
        return read_pdparams(path)
    if head.startswith(b"PK"):
        _check_archive(path)
        return _torch_payload(path)
    if head.startswith(b"\x80"):
        return _torch_payload(path)
    if head[8:9] == b"{" and head[:1] != b"{":
        return _safetensors(path)
    raise CheckpointError(_why_not_a_checkpoint(path, head))


def _head(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path} is a directory, not a checkpoint: pass the file in it")
        if not stat.S_ISREG(mode):
            raise CheckpointError(
                f"{path} is a pipe or a device, not a checkpoint file: write it to disk first"
            )
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: check the path of the weights") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the path and its permissions"
        ) from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): {_AGAIN}")
    return head


def _why_not_a_checkpoint(path: Path, head: bytes) -> str:
    """Say in one sentence what the file is instead of a checkpoint."""
    if path.suffix == ".onnx":
        return f"{path} is an ONNX graph, not a checkpoint: pass it with --onnx"
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            return f"{path} is compressed: unpack it first with '{command}'"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the checkpoint itself: fetch the file with 'git lfs pull'"
    if path.suffix == ".safetensors":
        return f"{path} is damaged or not a safetensors file (its header does not begin with '{{'): {_AGAIN}"
    text = head.decode("utf-8", errors="ignore").strip()
    readable = all(character.isprintable() or character.isspace() for character in text)
    if text and readable and b"\x00" not in head:
        return f"{path} is a text file, not a checkpoint (it begins with {text.splitlines()[0][:40]!r}): {_AGAIN}"
    return f"{path} is neither a torch.save file (.pth, .th, .pt) nor safetensors: pass a checkpoint of one of these"


def _check_archive(path: Path) -> None:
    """Refuse zip files that torch.save did not write, and TorchScript programs."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(name).name for name in archive.namelist()}
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({reason_of(error)}): {_AGAIN}") from None
    if unpacked > bytes_allowed(path.stat().st_size):
        raise CheckpointError(
            f"{path} unpacks to {unpacked:,} bytes, far more than its size: save it again with torch.save"
        )
    if "constants.pkl" in members:
        raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint: {_HOW_TO_SAVE}")
    if "data.pkl" not in members:
        raise CheckpointError(
            f"{path} is a zip archive that torch.save did not write: pass the checkpoint itself"
        )


def _torch_payload(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # torch warns about unusual pickle protocols before it refuses or reads them
            warnings.simplefilter("ignore")
            payload: object = torch.load(path, map_location="cpu", weights_only=True)
        refuse_inflated(payload, path.stat().st_size)
    except (pickle.UnpicklingError, UnicodeDecodeError):
        payload = _inert(path)
    except Exception as error:
        # a damaged pickle can make the unpickler fail with any exception
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or incomplete ({reason}): {_AGAIN}") from None
    return payload


def _inert(path: Path) -> object:
    """The content with stand-ins for the objects that torch's own safe loader refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_inert(path)
    except Exception as error:
        # an unusual pickle can make the unpickler fail with any exception
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is damaged, or a pickle that the safe loader refuses ({reason}): {_HOW_TO_SAVE}"
        ) from None


def _safetensors(path: Path) -> object:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged or incomplete ({reason}): {_AGAIN}") from None
