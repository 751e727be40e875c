"""Digests of images, which fingerprints of image sets are made of."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator


class HashedContents(ABC):
    """A source of images whose digests are those of what it holds."""

    @abstractmethod
    def contents(self) -> Iterator[bytes]:
        """The bytes of each image, in order."""

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of the bytes of each image, in order."""
        return (hashlib.sha256(content).digest() for content in self.contents())
