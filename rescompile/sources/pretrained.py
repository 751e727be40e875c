"""torchvision's published weights: downloaded once into a cache, and checked by hash on every use."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Published:
    """One published file."""

    sha256: str
    """Hash of its contents; the publisher gives the first eight digits, and for one file only these are known."""
    mebibytes: int
    """Its size, rounded up: more is not fetched."""

    def name(self, model: str) -> str:
        """The publisher's name of the file."""
        return f"{model}-{self.sha256[:8]}.pth"


PUBLISHED: dict[tuple[str, str], Published] = {
    ("resnet18", "v1"): Published("f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", 45),
    ("resnet34", "v1"): Published("b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f", 84),
    ("resnet50", "v1"): Published("0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", 98),
    ("resnet50", "v2"): Published("11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca", 98),
    ("resnet101", "v1"): Published("63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a", 171),
    ("resnet101", "v2"): Published("cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e", 171),
    ("resnet152", "v1"): Published("394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58", 231),
    ("resnet152", "v2"): Published("f82ba261", 231),
}
"""Files by network and training recipe."""

PUBLISHER = "https://download.pytorch.org/models"
SCHEMES = ("https://", "file:///")
"""Beginnings of addresses from which weights are fetched."""
_PIECE = 1 << 18
_TIMEOUT_SECONDS = 30


def fetch_pretrained(spec: ModelSpec, version: Version = "v1", *, progress: Progress | None = None) -> Path:
    """The file of published ImageNet weights of ``spec``, downloaded into the cache unless it is there already.

    The environment variable RESCOMPILE_WEIGHTS_URL names a mirror (https or file) of torchvision's folder.

    Raises:
        UsageError: no such weights were published.
        DownloadError: the file cannot be fetched or stored, or has another hash.
    """
    published = _published(spec, version)
    name = published.name(spec.name)
    url = f"{_mirror()}/{name}"
    target = cache_directory() / name
    try:
        if target.is_file() and sha256_of(target).startswith(published.sha256):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_stream(target) as stream:
            if not _download(url, stream, target, published, progress).startswith(published.sha256):
                raise DownloadError(
                    f"{url} does not have its published SHA-256 ({published.sha256[:8]}…) and was thrown away: "
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


def _published(spec: ModelSpec, version: str) -> Published:
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
    if not base.startswith(SCHEMES):
        raise UsageError(
            f"RESCOMPILE_WEIGHTS_URL is '{base}', which is not an https or file address: weights are fetched over an "
            "encrypted connection or from a disk"
        )
    return base.rstrip("/")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to another address, but not to an unencrypted one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request that follows; raises URLError where its address is of another kind."""
        if not newurl.startswith(SCHEMES[:-1]):
            raise urllib.error.URLError("it leads to an address that is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(
    url: str, stream: BinaryIO, target: Path, published: Published, progress: Progress | None
) -> str:
    """Write the body of ``url`` to ``stream``, and return its SHA-256.

    Raises:
        OSError: the disk refused.
        DownloadError: anything else went wrong.
    """
    digest, done = hashlib.sha256(), 0
    for piece, total in _pieces(url, target):
        if done + len(piece) > published.mebibytes << 20:
            raise _not_fetched(
                url, target, f"it is larger than the {published.mebibytes} MiB of the published file"
            )
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
        response: Any = urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_SECONDS)
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
