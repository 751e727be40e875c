"""The end of a build: the manifest over all files of an engine directory."""

from __future__ import annotations

from pathlib import Path

import msgspec

from rescompile.files import sha256_of, writing
from rescompile.manifest import MANIFEST, FileDigest, Manifest, read_manifest


def write_engine(directory: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` over all files that are in ``directory`` now; returns the manifest with hashes.

    Raises:
        ValueError: ``directory`` holds something else than plain files.
        OutputError: the disk is full.
    """
    paths = sorted(path for path in directory.iterdir() if path.name != MANIFEST)
    strange = [path.name for path in paths if path.is_symlink() or not path.is_file()]
    if strange:
        raise ValueError(f"an engine directory holds plain files only, not '{strange[0]}'")
    files = {path.name: FileDigest(sha256_of(path), path.stat().st_size) for path in paths}
    sealed = msgspec.structs.replace(manifest, files=files)
    with writing(directory):
        sealed.write(directory)
    return read_manifest(directory)
