"""Tell an address of a service or an object store from a path on this machine."""

from __future__ import annotations

import re

# A scheme of RFC 3986 and "://". A path such as "a://b" is an address, too; "C:\\data" and "x/a://b" are paths.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(place: str) -> bool:
    """Tell whether ``place`` is an address (``s3://bucket/lake``) rather than a path (``/srv/lake``)."""
    return _URL.match(place) is not None
