"""Signed engines: ``manifest.sig`` is an Ed25519 signature of the manifest, which names the hash of every file.

Hashes show that a directory is whole. They do not show who made it: anyone who changes a file can write its new hash. A
signature does. Keys are PEM files, as OpenSSL writes them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rescompile.engine_files import open_plain, readable
from rescompile.errors import EngineError, OutputError, UsageError, reason_of
from rescompile.files import atomic_stream, atomic_write, check_output_file, writing
from rescompile.manifest import SIGNATURE
from rescompile.optional import require
from rescompile.runtime.integrity import read_engine

_PURPOSE = b"rescompile engine 1\0"
"""Prefix of the signed text, so that a signature of anything else does not fit."""
_SIGNATURE_BYTES = 64
_MOST_KEY_BYTES = 1 << 16


def make_keys(path: Path) -> Path:
    """Write a new private key to ``path``, which its owner alone may read, and return the file of its public key.

    Raises:
        UsageError: there is a key already.
        BackendUnavailable: the package ``cryptography`` is not installed.
        OutputError: a file cannot be written.
    """
    ed25519, serialization = _library()
    public = path.with_name(f"{path.name}.pub")
    check_output_file(path)
    for each in (path, public):
        if each.exists():
            raise UsageError(f"{each} exists, and a key that is overwritten is lost; choose another --output")
    key = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    with writing(path), atomic_stream(path, mode=0o600) as stream:
        stream.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    atomic_write(public, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(directory: Path, key: Path) -> Path:
    """Sign the engine in ``directory``, after all its files were checked, and return the file of the signature.

    Raises:
        UsageError: ``key`` is not a private key.
        EngineError: the directory is damaged.
        BackendUnavailable: the package ``cryptography`` is not installed.
        OutputError: the signature cannot be written.
    """
    ed25519, serialization = _library()
    try:
        private = serialization.load_pem_private_key(_key_bytes(key), password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{key} is not a private key in PEM ({reason_of(error)}); {_MAKE_ONE}") from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise UsageError(f"{key} is a key of another kind than Ed25519; {_MAKE_ONE}")
    checked = read_engine(directory)
    path = directory / SIGNATURE
    try:
        atomic_write(path, private.sign(_PURPOSE + checked.manifest_text))
    except OutputError as error:
        raise OutputError(f"the signature cannot be written: {error}") from error
    return path


def check_signature(
    directory: Path, folder: int | None, manifest: bytes, trusted_keys: Sequence[Path | str]
) -> None:
    """Check that one of ``trusted_keys``, files of public keys, signed the ``manifest`` of ``directory``.

    Raises:
        UsageError: a key is not a public key.
        EngineError: the engine is not signed, or by no trusted key, or was changed afterwards.
        BackendUnavailable: the package ``cryptography`` is not installed.
    """
    keys = [_public_key(Path(key)) for key in trusted_keys]
    path = directory / SIGNATURE
    try:
        with readable(path), open_plain(path, folder=folder) as stream:
            signature = stream.read(_SIGNATURE_BYTES + 1)
    except EngineError as error:
        if not isinstance(error.__context__, FileNotFoundError):
            raise
        raise EngineError(
            f"the engine in {directory} is not signed, and only signed ones are trusted here; sign it with "
            "rescompile sign"
        ) from None
    if not any(_signed_by(key, _PURPOSE + manifest, signature) for key in keys):
        raise EngineError(
            f"the engine in {directory} was not signed by a trusted key, or changed afterwards; do not use it"
        )


_MAKE_ONE = "make one with rescompile keygen"


def _library() -> tuple[Any, Any]:
    """The modules of ``cryptography`` for Ed25519 and for key files."""
    purpose = "signing engines, and checking signatures,"
    return (
        require("cryptography.hazmat.primitives.asymmetric.ed25519", purpose),
        require("cryptography.hazmat.primitives.serialization", purpose),
    )


def _key_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size > _MOST_KEY_BYTES:
                raise UsageError(f"{path} is too large for a key; {_MAKE_ONE}")
            return stream.read(_MOST_KEY_BYTES)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read ({error.strerror}); {_MAKE_ONE}") from None


def _public_key(path: Path) -> Any:
    ed25519, serialization = _library()
    try:
        key = serialization.load_pem_public_key(_key_bytes(path))
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not a public key in PEM ({reason_of(error)}); pass the .pub file of rescompile keygen"
        ) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UsageError(f"{path} is a key of another kind than Ed25519; {_MAKE_ONE}")
    return key


def _signed_by(key: Any, message: bytes, signature: bytes) -> bool:
    invalid = require("cryptography.exceptions", "checking signatures").InvalidSignature
    try:
        key.verify(signature, message)
    except invalid:
        return False
    return True
