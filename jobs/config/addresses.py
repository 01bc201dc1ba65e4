"""Addresses of services and object stores: told from paths on this machine, and checked before their first use."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

# A scheme of RFC 3986 and "://". A path such as "a://b" is an address, too; "C:\\data" and "x/a://b" are paths.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(place: str) -> bool:
    """Tell whether ``place`` is an address (``s3://bucket/lake``) rather than a path (``/srv/lake``)."""
    return _URL.match(place) is not None


def redis_address(url: str) -> str:
    """Address of a Redis server for messages, without credentials.

    Args:
        url: ``redis://host:port/db``, or ``rediss://`` for TLS.

    Raises:
        ValueError: The URL contains credentials or options, or is not a Redis URL.
    """
    # No message shows the part of a URL that may contain a password.
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError(
            "publish.redis_url: leave the credentials out, set redis_username and LTE_PUBLISH__REDIS_PASSWORD"
        )
    # redis-py reads every option from the query of a URL, ssl_cert_reqs=none and password included.
    if parts.query or parts.fragment:
        raise ValueError(
            "publish.redis_url: expected no '?' and no '#', got one; redis_username, LTE_PUBLISH__REDIS_PASSWORD, "
            "redis_ca_file, redis_cert_file and redis_key_file are settings of their own"
        )
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        shown = f"***{url[url.rindex('@') :]}" if "@" in url else url
        raise ValueError(f"publish.redis_url: expected redis://host:port/db or rediss://host:port/db, got {shown!r}")
    return f"{parts.hostname}:{parts.port or 6379}{parts.path}"


def require_tls_files(url: str, files: dict[str, str]) -> None:
    """Check the TLS files of a Redis server before the first connection.

    Args:
        url: URL of the server.
        files: "ca", "cert" and "key", each to a PEM file; empty for none.

    Raises:
        ValueError: A file is missing or given without TLS, or a certificate is given without its key.
    """
    for name, file in files.items():
        if file and not url.startswith("rediss://"):
            raise ValueError(f"publish.redis_{name}_file {file!r}: needs a rediss:// URL, got redis://")
        if file and not Path(file).is_file():
            raise ValueError(f"publish.redis_{name}_file {file!r}: no such file")
    if bool(files["cert"]) != bool(files["key"]):
        missing = "key" if files["cert"] else "cert"
        raise ValueError(f"publish.redis_{missing}_file '': a client's certificate and its key go together")
