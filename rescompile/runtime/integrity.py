"""Checks an engine directory without loading the engine: the manifest, and the files against it."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rescompile.backends import BACKENDS, get_backend
from rescompile.errors import EngineError
from rescompile.files import sha256_of
from rescompile.manifest import GOLDEN, MANIFEST, Manifest, read_manifest

_ADVICE = "copy or build the engine again"
_MOST_IMAGE_VALUES = 1 << 30
_MOST_LEAST_BATCH_VALUES = 1 << 31
"""Limit on the smallest batch, to which fewer images are padded in memory: 8 GiB of float32."""


def checked_manifest(directory: Path, *, hashes: bool = True) -> Manifest:
    """Read the manifest, and check all that can be checked without loading the engine.

    Raises:
        EngineError: the directory is damaged or incomplete.
    """
    manifest = read_manifest(directory)
    check_manifest(directory, manifest)
    needed = get_backend(manifest.backend).payload_files
    require_files(directory / MANIFEST, manifest, needed, "the engine cannot be loaded")
    check_files(directory, manifest, hashes=hashes)
    return manifest


def check_files(directory: Path, manifest: Manifest, *, hashes: bool = True) -> None:
    """Check that every file of the manifest is a plain file with the right size and, if ``hashes``, the right hash.

    Raises:
        EngineError: names the first file that is not.
    """
    for name, digest in manifest.files.items():
        with _readable(directory / name) as path:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise EngineError(f"{path} is not a regular file (perhaps a symbolic link); {_ADVICE}")
            if found.st_size != digest.bytes:
                raise EngineError(
                    f"{path} has {found.st_size:,} bytes instead of {digest.bytes:,}; {_ADVICE}"
                )
    if hashes:
        _check_hashes(directory, manifest)


def _check_hashes(directory: Path, manifest: Manifest) -> None:
    """Hash every file, two at a time, because hashing the graphs of a deep network dominates a load."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        pending = {name: pool.submit(sha256_of, directory / name) for name in manifest.files}
        for name, digest in manifest.files.items():
            with _readable(directory / name) as path:
                if pending[name].result() != digest.sha256:
                    raise EngineError(f"{path} was changed after the build (its hash differs); {_ADVICE}")


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Turn an error of reading ``path`` into one sentence."""
    try:
        yield path
    except FileNotFoundError:
        raise EngineError(f"{path} is missing, although the manifest lists it; {_ADVICE}") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def check_manifest(directory: Path, manifest: Manifest) -> None:
    """Refuse a manifest that no build can have written, before memory is allocated for it.

    Raises:
        EngineError: names the field and what is wrong with it.
    """
    path = directory / MANIFEST
    if manifest.backend not in BACKENDS:
        raise EngineError(
            f"{path} names the backend '{manifest.backend}', this rescompile has {', '.join(BACKENDS)}; "
            "install the version that built the engine"
        )
    if len(manifest.inputs) != 1 or not manifest.outputs or len(manifest.inputs[0].shape) != 4:
        raise EngineError(
            f"{path} does not describe a network with one image input and an output; build the engine again"
        )
    for output in manifest.outputs:
        if fault := output.fault():
            raise EngineError(f"{path} describes an output '{output.name}' {fault}; build the engine again")
    if len({output.name for output in manifest.outputs}) < len(manifest.outputs):
        raise EngineError(f"{path} gives two outputs one name; build the engine again")
    _check_sizes(path, manifest)
    require_files(path, manifest, (GOLDEN,), "the engine cannot be tested")


def require_files(path: Path, manifest: Manifest, names: Sequence[str], consequence: str) -> None:
    """Refuse a manifest that does not list all ``names``, because files that are not listed have no hash.

    Raises:
        EngineError: names the first of them.
    """
    for name in names:
        if name not in manifest.files:
            raise EngineError(f"{path} does not list {name}, so {consequence}; build it again")


def _check_sizes(path: Path, manifest: Manifest) -> None:
    batch, image = manifest.batch, manifest.inputs[0].shape[1:]
    if not batch.min <= batch.opt <= batch.max:
        raise EngineError(
            f"{path} has batch sizes {batch.min}:{batch.opt}:{batch.max}, which are not min <= opt <= max; "
            "build the engine again"
        )
    if min(image) < 1 or math.prod(image) > _MOST_IMAGE_VALUES:
        raise EngineError(f"{path} has an impossible input size {list(image)}; build the engine again")
    answer = sum(math.prod(output.shape[1:]) for output in manifest.outputs)
    if batch.min * max(math.prod(image), answer) > _MOST_LEAST_BATCH_VALUES:
        raise EngineError(
            f"{path} has a smallest batch of {batch.min:,} images, which cannot fit into memory; "
            "build the engine again"
        )
