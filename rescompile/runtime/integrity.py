"""Checks an engine directory without loading the engine: the manifest, and the files against it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calibration.preprocess import size_words
from rescompile.backends import BACKENDS, get_backend
from rescompile.backends.base import HasCpuForms
from rescompile.engine_files import ADVICE, EngineFiles, OpenFile, open_plain, readable
from rescompile.errors import EngineError
from rescompile.manifest import GOLDEN, MACHINE_CODE, MANIFEST, Manifest, manifest_text, parse_manifest

_TRIES = 5
_MOST_RELATIVE_RMS = 1.0
"""Limit on the tolerance of the self-test: an engine that answers 0 to everything has a relative RMS of 1."""
_MOST_KEPT_BYTES = 16 << 30
"""Limit on the payload, 60 times that of a ResNet-152 in fp32."""
_MOST_IMAGE_VALUES = 1 << 30
_MOST_LEAST_BATCH_VALUES = 1 << 31
"""Limit on the smallest batch, to which fewer images are padded in memory: 8 GiB of float32."""


@dataclass(frozen=True)
class CheckedEngine:
    """An engine directory as it was at one moment: its manifest, and the contents that belong to it."""

    manifest: Manifest
    files: EngineFiles
    manifest_text: bytes


def read_engine(
    directory: Path,
    *,
    hashes: bool = True,
    also: Sequence[str] = (),
    check_text: Callable[[int | None, bytes], None] | None = None,
) -> CheckedEngine:
    """Read an engine, and check all that can be checked without loading it.

    The directory is opened once. If another engine replaces it meanwhile, and this one is removed, the new one is read.
    The payload, the golden images and those files of ``also`` that the manifest lists are kept in memory.

    Args:
        directory: of the engine.
        hashes: check them; without, sizes alone are.
        also: more files to keep.
        check_text: called with the descriptor of the directory and the manifest's text before anything is believed.

    Raises:
        EngineError: the directory is damaged or incomplete.
    """
    for left in reversed(range(_TRIES)):
        with _opened(directory) as folder:
            try:
                return _read(directory, folder, hashes=hashes, also=also, check_text=check_text)
            except EngineError:
                if not left or not _was_replaced(directory, folder):
                    raise
    raise AssertionError


def _read(
    directory: Path,
    folder: int | None,
    *,
    hashes: bool,
    also: Sequence[str],
    check_text: Callable[[int | None, bytes], None] | None,
) -> CheckedEngine:
    text = manifest_text(directory, folder=folder)
    if check_text is not None:
        check_text(folder, text)
    manifest = parse_manifest(text, directory / MANIFEST)
    check_manifest(directory, manifest)
    backend = get_backend(manifest.backend)
    needed = backend.payload_files
    if isinstance(backend, HasCpuForms):
        also = (*also, *backend.more_files(manifest.cpu_form))
    require_files(directory / MANIFEST, manifest, needed, "the engine cannot be loaded")
    _check_file_sizes(directory, folder, manifest)
    kept = [
        name
        for name in manifest.files
        if name in needed or name.endswith(MACHINE_CODE) or name in also or (hashes and name == GOLDEN)
    ]
    found = _contents(directory, folder, manifest, kept, hashes=hashes)
    contents = {name: content for name, (content, _) in found.items()}
    opened = {name: file for name, (_, file) in found.items() if file is not None}
    digests = {name: manifest.files[name].sha256 for name in kept} if hashes else {}
    return CheckedEngine(manifest, EngineFiles(directory, contents, digests, opened), text)


@contextmanager
def _opened(directory: Path) -> Iterator[int | None]:
    """The descriptor of the directory; None where it cannot be opened, which reading its manifest then explains."""
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        os.close(folder)


def _was_replaced(directory: Path, folder: int | None) -> bool:
    """Whether another directory has the name ``directory`` now; ``folder`` is the descriptor of the old one."""
    if folder is None:
        return False
    try:
        now, then = directory.stat(), os.fstat(folder)
    except OSError:
        return True
    return (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino)


def _check_file_sizes(directory: Path, folder: int | None, manifest: Manifest) -> None:
    """Check that every file of the manifest is a plain file of the right size."""
    for name, digest in manifest.files.items():
        path = directory / name
        with _listed(path), open_plain(path, folder=folder) as stream:
            found = os.fstat(stream.fileno()).st_size
        if found != digest.bytes:
            raise EngineError(f"{path} has {found:,} bytes instead of {digest.bytes:,}; {ADVICE}")


def _contents(
    directory: Path, folder: int | None, manifest: Manifest, kept: Sequence[str], *, hashes: bool
) -> dict[str, _Read]:
    """Read the files ``kept``, and hash every file, two at a time, because hashing large graphs dominates a load."""
    from concurrent.futures import ThreadPoolExecutor

    total = sum(manifest.files[name].bytes for name in kept)
    if total > _MOST_KEPT_BYTES:
        raise EngineError(
            f"the payload in {directory} has {total:,} bytes, more than the {_MOST_KEPT_BYTES:,} that are read; "
            "build the engine again"
        )
    names = [name for name in manifest.files if hashes or name in kept]
    found = {}
    with ThreadPoolExecutor(2) as pool:
        pending = {
            name: pool.submit(_read_one, directory / name, folder, keep=name in kept) for name in names
        }
        for name, done in pending.items():
            with _listed(directory / name):
                read, sha256 = done.result()
            if hashes and sha256 != manifest.files[name].sha256:
                raise EngineError(
                    f"{directory / name} was changed after the build (its hash differs); {ADVICE}"
                )
            if read is not None:
                found[name] = read
    return found


_Read = tuple[bytes, OpenFile | None]
"""The contents of a file, and the file itself; not of machine code, of which an engine may have hundreds of files."""


def _read_one(path: Path, folder: int | None, *, keep: bool) -> tuple[_Read | None, str]:
    """A file, if it is to be kept, and the SHA-256 of its contents."""
    with open_plain(path, folder=folder) as stream:
        if keep:
            content = stream.read()
            opened = None if path.name.endswith(MACHINE_CODE) else OpenFile(stream)
            return (content, opened), hashlib.sha256(content).hexdigest()
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
        return None, digest.hexdigest()


@contextmanager
def _listed(path: Path) -> Iterator[None]:
    """Turn an error of reading a file that the manifest lists into one sentence."""
    try:
        with readable(path):
            yield
    except EngineError as error:
        if isinstance(error.__context__, FileNotFoundError):
            raise EngineError(f"{path} is missing, although the manifest lists it; {ADVICE}") from None
        raise


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
    if not 0 <= manifest.golden_relative_rms <= _MOST_RELATIVE_RMS:  # NaN, too
        raise EngineError(
            f"{path} allows golden answers to be wrong by {manifest.golden_relative_rms:g}, so its self-test would say "
            "nothing; build the engine again"
        )
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
    fed, sizes = manifest.inputs[0], manifest.sizes
    open_ports = [port.resizable for port in (fed, *manifest.outputs)]
    if sizes is None and any(open_ports):
        raise EngineError(
            f"{path} does not say which sizes of images the engine takes; build the engine again"
        )
    if sizes is not None:
        own = manifest.preprocess.size
        if not (fed.resizable and sizes.holds(own) and sizes.holds(sizes.max)):
            raise EngineError(
                f"{path} has image sizes {sizes}, which do not fit its input {list(fed.shape)} and the crop "
                f"{size_words(own)}; build the engine again"
            )
        image = fed.of_size(sizes.max)
    if min(image) < 1 or math.prod(image) > _MOST_IMAGE_VALUES:
        raise EngineError(f"{path} has an impossible input size {list(image)}; build the engine again")
    answer = sum(math.prod(output.shape[1:]) for output in manifest.outputs)
    if batch.min * max(math.prod(image), answer) > _MOST_LEAST_BATCH_VALUES:
        raise EngineError(
            f"{path} has a smallest batch of {batch.min:,} images, which cannot fit into memory; "
            "build the engine again"
        )
