"""An engine directory, checked without loading the engine: its manifest makes sense, its files are those sealed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rescompile.backends import get_backend
from rescompile.errors import EngineError
from rescompile.files import sha256_of
from rescompile.manifest import MANIFEST, Manifest, read_manifest
from rescompile.runtime.sanity import check_manifest, require_files

_ADVICE = "copy or build the engine again"


def checked_manifest(directory: Path, *, hashes: bool = True) -> Manifest:
    """The manifest of a directory of which everything is checked that can be without loading the engine.

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
    """Check that every file of the manifest is there, a plain file, of its size and (``hashes``) of its hash.

    Raises:
        EngineError: names the first file that is not.
    """
    for name, digest in manifest.files.items():
        with _readable(directory / name) as path:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise EngineError(f"{path} is no plain file (a symbolic link, perhaps); {_ADVICE}")
            if found.st_size != digest.bytes:
                raise EngineError(
                    f"{path} has {found.st_size:,} bytes instead of {digest.bytes:,}; {_ADVICE}"
                )
    if hashes:
        _check_hashes(directory, manifest)


def _check_hashes(directory: Path, manifest: Manifest) -> None:
    """Hash every file, two at a time: the graphs of a deep network are most of a load otherwise."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        pending = {name: pool.submit(sha256_of, directory / name) for name in manifest.files}
        for name, digest in manifest.files.items():
            with _readable(directory / name) as path:
                if pending[name].result() != digest.sha256:
                    raise EngineError(f"{path} was changed after the build (its hash differs); {_ADVICE}")


@contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Turn the operating system's refusal to read ``path`` into a sentence."""
    try:
        yield path
    except FileNotFoundError:
        raise EngineError(f"{path} is missing, although the manifest lists it; {_ADVICE}") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
