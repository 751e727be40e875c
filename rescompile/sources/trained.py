"""The metadata that ``rescompile train`` writes into its .safetensors files, so that a build needs nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from calibration.preprocess import Preprocess
from rescompile.errors import CheckpointError

_KEY = "rescompile.training"


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """Origin and use of trained weights."""

    model: str
    """Name in the registry."""
    preprocess: Preprocess
    classes: tuple[str, ...] | None
    """Names by index, where the images had names."""
    data: str
    recipe: dict[str, object]
    step: int
    test_error: float
    """In percent."""
    calibration: str | None = None
    """File beside the weights that INT8 scales come from: images (.npz) or a calibration table (.json)."""

    def metadata(self) -> dict[str, str]:
        """Metadata of the .safetensors file."""
        return {_KEY: msgspec.json.encode(self).decode(), "format": "pt"}


def read_trained(path: Path) -> Trained | None:
    """The record about its weights in a .safetensors file of ``rescompile train``; None for other files.

    Raises:
        CheckpointError: it says something that this version does not understand.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return None  # reading the weights says what is wrong with the file
    if _KEY not in metadata:
        return None
    try:
        return msgspec.json.decode(metadata[_KEY], type=Trained)
    except (msgspec.DecodeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: what rescompile train wrote into it is not understood ({error}): update rescompile, or pass "
            "--model with the preprocessing"
        ) from None
