"""Which code made a result: the deployment's commit, or version and digest of this package."""

from __future__ import annotations

import functools
import hashlib
import os
from importlib.metadata import version
from pathlib import Path

# Packages whose code the code version stands for.
PACKAGES = ("jobs", "lte_models", "schemas")


def code_version() -> str:
    """Value of ``LTE_CODE_VERSION`` (for example a deployment's commit), or version and digest of this package's code.

    The digest distinguishes an edited clone from the release, so that results of different code have different names.
    """
    return os.environ.get("LTE_CODE_VERSION") or f"{version('long-term-embeddings')}+{_code_digest()}"


@functools.cache
def _code_digest() -> str:
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]
