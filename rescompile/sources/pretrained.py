"""torchvision's published weights: downloaded once into a cache, and checked by hash on every use."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from calibration.preprocess import IMAGENET, Preprocess
from rescompile.cache import cache_directory
from rescompile.errors import DownloadError, UsageError
from rescompile.files import atomic_stream, sha256_of
from rescompile.models.specification import ModelSpec

Version = Literal["v1", "v2"]
Progress = Callable[[int, int], None]
"""Called with (done, total) in bytes; total is 0 where the server does not say."""

PUBLISHED: dict[tuple[str, str], str] = {
    ("resnet18", "v1"): "resnet18-f37072fd.pth",
    ("resnet34", "v1"): "resnet34-b627a593.pth",
    ("resnet50", "v1"): "resnet50-0676ba61.pth",
    ("resnet50", "v2"): "resnet50-11ad3fa6.pth",
    ("resnet101", "v1"): "resnet101-63fe2227.pth",
    ("resnet101", "v2"): "resnet101-cd907fc2.pth",
    ("resnet152", "v1"): "resnet152-394f9c45.pth",
    ("resnet152", "v2"): "resnet152-f82ba261.pth",
}
"""File by network and training recipe; the eight digits are the first of its SHA-256."""

PUBLISHER = "https://download.pytorch.org/models"
_PIECE = 1 << 18
_TIMEOUT_SECONDS = 30


def fetch_pretrained(spec: ModelSpec, version: Version = "v1", *, progress: Progress | None = None) -> Path:
    """The file of published ImageNet weights of ``spec``, downloaded into the cache unless it is there already.

    The environment variable RESCOMPILE_WEIGHTS_URL names a mirror (http, https or file) of torchvision's folder.

    Raises:
        UsageError: no such weights were published.
        DownloadError: the file cannot be fetched or stored, or has another hash.
    """
    name = _published(spec, version)
    url = f"{_mirror()}/{name}"
    target = cache_directory() / name
    try:
        if target.is_file() and sha256_of(target).startswith(_expected(name)):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_stream(target) as stream:
            if not _download(url, stream, target, progress).startswith(_expected(name)):
                raise DownloadError(
                    f"{url} does not have its published SHA-256 ({_expected(name)}…) and was thrown away: "
                    "try again, or set RESCOMPILE_WEIGHTS_URL to another mirror"
                )
    except OSError as error:
        raise DownloadError(
            f"{target} cannot be read or written ({error.strerror or error}): make room and give access there, "
            "or set RESCOMPILE_CACHE to another directory"
        ) from error
    return target


def pretrained_preprocess(spec: ModelSpec, version: Version = "v1") -> Preprocess:
    """Preprocessing for which the weights were published: shorter side 256 pixels for v1, 232 for v2.

    Raises:
        UsageError: no such weights were published.
    """
    _published(spec, version)
    return IMAGENET if version == "v1" else msgspec.structs.replace(IMAGENET, resize=232)


def _published(spec: ModelSpec, version: str) -> str:
    versions = [known for model, known in PUBLISHED if model == spec.name]
    if not versions:
        raise UsageError(
            f"there are no published weights of {spec.name}: pass --weights FILE "
            "(pretrained weights exist for ImageNet's resnet18, 34, 50, 101 and 152)"
        )
    if version not in versions:
        raise UsageError(f"{spec.name} has no published weights '{version}', only {' and '.join(versions)}")
    if spec.stride_on != "3x3":
        raise UsageError(
            f"the published weights of {spec.name} were trained with the stride on the 3x3 convolution (v1.5): "
            "leave the stride there, or pass --weights FILE"
        )
    return PUBLISHED[spec.name, version]


def _mirror() -> str:
    base = os.environ.get("RESCOMPILE_WEIGHTS_URL") or PUBLISHER
    if not base.startswith(("https://", "http://", "file:///")):
        raise UsageError(f"RESCOMPILE_WEIGHTS_URL is '{base}', which is not an http, https or file address")
    return base.rstrip("/")


def _expected(name: str) -> str:
    return Path(name).stem.rpartition("-")[2]


def _download(url: str, stream: BinaryIO, target: Path, progress: Progress | None) -> str:
    """Write the body of ``url`` to ``stream``, and return its SHA-256.

    Raises:
        OSError: the disk refused.
        DownloadError: anything else went wrong.
    """
    digest, done = hashlib.sha256(), 0
    for piece, total in _pieces(url, target):
        stream.write(piece)
        digest.update(piece)
        done += len(piece)
        if progress is not None:
            progress(done, total)
    return digest.hexdigest()


def _pieces(url: str, target: Path) -> Iterator[tuple[bytes, int]]:
    """The body of ``url`` in pieces, each with the size of the whole in bytes (0 if unknown)."""
    request = urllib.request.Request(url, headers={"User-Agent": "rescompile"})
    try:
        response: Any = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
        with closing(response):
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            while piece := response.read(_PIECE):
                done += len(piece)
                yield piece, total
            if done < total:
                raise _not_fetched(url, target, f"the connection broke off after {done} of {total} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        raise _not_fetched(url, target, f"the server answered {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise _not_fetched(url, target, str(reason)) from None


def _not_fetched(url: str, target: Path, reason: str) -> DownloadError:
    damaged = " (the file that lies there now does not have the published SHA-256)" if target.exists() else ""
    return DownloadError(
        f"{url} cannot be fetched ({reason}): without a network, fetch {target.name} elsewhere and put it at "
        f"{target}{damaged}, or pass --weights FILE"
    )
