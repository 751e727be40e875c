"""Hugging Face's Hub, from which timm downloads weights, on a machine without a network.

The Hub's client tries each file six times and waits longer each time, three quarters of a minute in all. Where its
server cannot be reached at all, the client is told so: then it looks into its cache alone.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from rescompile.optional import installed, require

_SECONDS = 10.0
"""To connect to a server, as the Hub's client waits for an answer: a slow network needs one or two."""
_PORTS = {"https": 443, "http": 80}


@contextmanager
def unreachable_hub() -> Iterator[str | None]:
    """While it runs, the Hub's client does not wait for a server that cannot be reached.

    Gives the reason, such as "huggingface.co: Name or service not known"; None where a server answers.
    """
    if not installed("huggingface_hub"):
        yield None
        return
    constants: Any = require("huggingface_hub", "downloading weights").constants
    before = constants.HF_HUB_OFFLINE
    reason = "HF_HUB_OFFLINE is set" if before else _reason_against(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = reason is not None
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


def _reason_against(address: str) -> str | None:
    """Why nothing listens at ``address``, or at the proxy before it; None where something does."""
    parts = urlsplit(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if not parts.hostname:
        return None  # the client says better what is wrong with such an address
    try:
        with socket.create_connection(
            (parts.hostname, parts.port or _PORTS.get(parts.scheme, 1080)), _SECONDS
        ):
            return None
    except OSError as error:
        return f"{parts.hostname}: {error.strerror or error}"
