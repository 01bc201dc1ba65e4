"""Model bundles: weights in safetensors beside a manifest in JSON. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lte_models.files import write_atomically
from lte_models.training.manifest import (
    FORMAT,
    MANIFEST,
    BundleError,
    Manifest,
    read_manifest,
    vocabulary_hash,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Bundle",
    "BundleError",
    "Manifest",
    "check_finite",
    "load_bundle",
    "load_bundle_weights",
    "read_manifest",
    "save_bundle",
    "vocabulary_hash",
]


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Args:
        tensors: Name to tensor.
        source: Named in the error.

    Raises:
        BundleError: A float tensor holds a value that is not finite.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            n_bad = int((~torch.isfinite(tensor)).sum())
            raise BundleError(f"{source}: tensor {name} holds {n_bad} values that are not finite")


def save_bundle(folder: Path, manifest: Manifest, tensors: Mapping[str, Tensor], item_ids: Sequence[str]) -> Manifest:
    """Write weights, vocabulary and, last and atomically, the manifest that makes them the bundle.

    Args:
        folder: The bundle; an earlier bundle stays readable until the manifest is swapped.
        manifest: This function fills in ``weights_file``, ``weights_sha256`` and ``vocabulary_hash``.
        tensors: Weights and buffers; must be finite.
        item_ids: Vocabulary in row order.

    Returns:
        The manifest as written.

    Raises:
        BundleError: A weight is not finite.
        ValueError: The vocabulary is empty or names an item twice.
    """
    check_finite(tensors, str(folder))
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest, vocabulary = hashlib.sha256(content).hexdigest(), vocabulary_hash(item_ids)
    weights_file = f"weights-{digest[:16]}.safetensors"
    written = Manifest(
        **asdict(manifest) | {"weights_file": weights_file, "weights_sha256": digest, "vocabulary_hash": vocabulary}
    )
    write_atomically(folder / weights_file, content)
    write_atomically(folder / f"vocabulary-{vocabulary[:16]}.json", json.dumps(list(item_ids)).encode())
    write_atomically(folder / MANIFEST, json.dumps(asdict(written), indent=2, sort_keys=True).encode())
    _remove_superseded(folder, written)
    return written


def _remove_superseded(folder: Path, manifest: Manifest) -> None:
    keep = {manifest.weights_file, f"vocabulary-{manifest.vocabulary_hash[:16]}.json"}
    for path in [*folder.glob("weights-*.safetensors"), *folder.glob("vocabulary-*.json")]:
        if path.name not in keep:
            path.unlink()


def _read_weights(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    path = folder / manifest.weights_file
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise BundleError(f"{path}: the weights that the manifest names are missing") from error
    if hashlib.sha256(content).hexdigest() != manifest.weights_sha256:
        raise BundleError(f"{path}: truncated or changed: its SHA-256 is not the manifest's")
    try:
        return load(content)
    except SafetensorError as error:
        raise BundleError(f"{path}: not safetensors: {error}") from error


def _read_vocabulary(folder: Path, manifest: Manifest) -> list[str]:
    path = folder / f"vocabulary-{manifest.vocabulary_hash[:16]}.json"
    try:
        item_ids = [str(item_id) for item_id in json.loads(path.read_bytes())]
    except (FileNotFoundError, ValueError) as error:
        raise BundleError(f"{path}: vocabulary missing or truncated: {error}") from error
    if vocabulary_hash(item_ids) != manifest.vocabulary_hash:
        raise BundleError(f"{path}: vocabulary changed: its hash is not the manifest's")
    return item_ids


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed all checks.

    Attributes:
        manifest: Description of the bundle.
        tensors: Weights and buffers by name.
        item_ids: Vocabulary in row order.
    """

    manifest: Manifest
    tensors: dict[str, Tensor]
    item_ids: list[str]


def load_bundle(folder: Path, *, kind: str, basis_version: str | None = None, lte_window: str | None = None) -> Bundle:
    """Read and check a bundle.

    Args:
        folder: The bundle.
        kind: Expected kind.
        basis_version: Basis that the caller works in; None accepts any.
        lte_window: Window of the caller's LTEs; None accepts any.

    Returns:
        The bundle.

    Raises:
        BundleError: Another kind, basis or window; a missing, truncated or changed file; weights not finite.
    """
    manifest = read_manifest(folder)
    wanted = {"kind": kind, "basis_version": basis_version, "lte_window": lte_window}
    for name, value in wanted.items():
        if value is not None and getattr(manifest, name) != value:
            raise BundleError(
                f"{folder}: expected {name} {value!r}, got {getattr(manifest, name)!r}: use the configuration that the "
                "bundle was trained with, or train it again"
            )
    tensors = _read_weights(folder, manifest)
    check_finite(tensors, str(folder / manifest.weights_file))
    return Bundle(manifest, tensors, _read_vocabulary(folder, manifest))


def load_bundle_weights(module: torch.nn.Module, bundle: Bundle) -> None:
    """Load a bundle's weights into a module of the same shape.

    Args:
        module: Receives all its parameters and persistent buffers.
        bundle: Their values.

    Raises:
        BundleError: A tensor is missing, unknown or of another shape.
    """
    try:
        module.load_state_dict(bundle.tensors, strict=True)
    except RuntimeError as error:
        raise BundleError(f"{bundle.manifest.kind} of ds {bundle.manifest.ds} does not fit: {error}") from error
