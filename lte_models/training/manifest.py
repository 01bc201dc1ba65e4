"""What a bundle is, readable without loading torch: its manifest, its vocabulary's hash, files that are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1


class BundleError(RuntimeError):
    """A bundle cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """Description of a bundle, so that a wrong pairing is refused before a weight is read.

    Attributes:
        kind: "ranker" or "autoencoder".
        config: The model's configuration, plain JSON values.
        basis_version: Basis whose vectors the model was trained on.
        lte_window: Window of the LTEs that the model reads or makes: "365-60"; empty if it uses no LTE.
        ds: Data day of the training run, ISO.
        vocabulary_hash: SHA-256 over the item ids in row order.
        code_version: Version of this package.
        metrics: Name to value.
        weights_file: Weights, beside the manifest.
        weights_sha256: Of that file.
        format_version: Of this layout.
        half_life_days: Half-life of the LTEs that the model reads; None where the LTEs are no recency averages, and in
            a manifest that is older than this field.
    """

    kind: str
    config: Mapping[str, Any]
    basis_version: str
    lte_window: str
    ds: str
    vocabulary_hash: str
    code_version: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights_file: str = ""
    weights_sha256: str = ""
    format_version: int = FORMAT
    half_life_days: float | None = None


def vocabulary_hash(item_ids: Sequence[str]) -> str:
    """SHA-256 over ids in row order; each is framed by its length, so no two lists share a hash.

    Args:
        item_ids: Row order.

    Returns:
        64 hex digits.

    Raises:
        ValueError: There is no item, or one occurs twice.
    """
    if not item_ids:
        raise ValueError("the vocabulary holds no item")
    if len(set(item_ids)) != len(item_ids):
        raise ValueError(f"the vocabulary names {len(item_ids) - len(set(item_ids))} items twice")
    digest = hashlib.sha256()
    for item_id in item_ids:
        raw = item_id.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return digest.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest.

    Args:
        folder: The bundle.

    Returns:
        The manifest.

    Raises:
        BundleError: There is no manifest, or it is not JSON, lacks a field or has another format.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest(**json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: there is no bundle") from error
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path}: not a manifest of format {FORMAT}: {error}") from error
    if manifest.format_version != FORMAT:
        raise BundleError(f"{path}: format {manifest.format_version}, this code reads {FORMAT}")
    return manifest
