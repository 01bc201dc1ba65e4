"""Which ranker is live: a copy of its bundle beside a pointer that is swapped atomically.

The previous bundle is kept too. The bundles are copies, because a rerun of a training day overwrites the bundle of
that day.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.registry.bundles import ModelError, models_folder
from jobs.registry.tracking import follow_live
from lte_models.files import write_atomically
from lte_models.training.manifest import MANIFEST, Manifest, read_manifest

POINTER = "live.json"


@dataclass(frozen=True)
class LiveRanker:
    """The content of the pointer.

    Attributes:
        bundle: Folder of the live bundle, beside the pointer.
        ds: Data day of the run that trained the bundle.
        weights_sha256: SHA-256 of the weights.
        previous: Folder of the bundle that was live before; empty for none.
    """

    bundle: str
    ds: str
    weights_sha256: str
    previous: str = ""


def live_folder(deployment: Deployment) -> Path:
    """Folder of the pointer and of the bundles that the pointer names.

    Raises:
        ModelError: The lake is not a folder.
    """
    return models_folder(deployment) / "ranker" / "live"


def live_ranker(deployment: Deployment) -> LiveRanker | None:
    """The live ranker; None before the first ranker is live, and where the lake is a URL and so holds no bundles.

    Raises:
        ModelError: The pointer cannot be read.
    """
    if is_url(deployment.paths.lake):
        return None
    path = live_folder(deployment) / POINTER
    try:
        return LiveRanker(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: not a pointer to a ranker: {error}") from error


def live_bundle_folder(deployment: Deployment) -> Path | None:
    """Folder of the live bundle; None where nothing is live."""
    live = live_ranker(deployment)
    return live_folder(deployment) / live.bundle if live else None


def live_manifest(deployment: Deployment) -> Manifest | None:
    """Manifest of the live bundle; None where nothing is live.

    Raises:
        lte_models.training.bundle.BundleError: The pointer names a bundle that no longer exists.
    """
    folder = live_bundle_folder(deployment)
    return read_manifest(folder) if folder else None


def previous_manifest(deployment: Deployment) -> Manifest | None:
    """Manifest of the bundle that was live before; None where there is none.

    Raises:
        lte_models.training.bundle.BundleError: The pointer names a bundle that no longer exists.
    """
    live = live_ranker(deployment)
    return read_manifest(live_folder(deployment) / live.previous) if live and live.previous else None


def make_live(deployment: Deployment, bundle: Path) -> LiveRanker:
    """Copy a bundle and point to the copy; a crash before the pointer is written leaves the live ranker unchanged.

    Args:
        deployment: The deployment.
        bundle: Folder of the bundle.

    Returns:
        The new pointer; the present pointer when this bundle is live already.
    """
    manifest, folder, before = read_manifest(bundle), live_folder(deployment), live_ranker(deployment)
    name = bundle_name(manifest)
    if before and before.bundle == name:
        return before
    _copy(bundle, folder / name)
    pointer = LiveRanker(name, manifest.ds, manifest.weights_sha256, before.bundle if before else "")
    _point(deployment, pointer)
    for path in folder.glob("ds=*"):
        if path.name not in (pointer.bundle, pointer.previous):
            shutil.rmtree(path)
    return pointer


def bundle_name(manifest: Manifest) -> str:
    """Name of the folder, beside the pointer, that holds the copy of a bundle."""
    return f"ds={manifest.ds}-{manifest.weights_sha256[:12]}"


def switch_back(deployment: Deployment) -> LiveRanker:
    """Make the previous ranker live again; the LTEs do not change.

    Raises:
        ModelError: There is no previous ranker.
    """
    live = live_ranker(deployment)
    if live is None or not live.previous:
        raise ModelError("there is no earlier ranker to switch back to")
    manifest = read_manifest(live_folder(deployment) / live.previous)
    pointer = LiveRanker(live.previous, manifest.ds, manifest.weights_sha256, live.bundle)
    _point(deployment, pointer)
    return pointer


def _point(deployment: Deployment, pointer: LiveRanker) -> None:
    """Switch the pointer, then the alias in MLflow, which nothing but people reads."""
    write_atomically(live_folder(deployment) / POINTER, json.dumps(asdict(pointer), indent=2).encode())
    follow_live(deployment, "ranker", pointer.weights_sha256)


def _copy(bundle: Path, target: Path) -> None:
    """Copy the files of a bundle, the manifest last, so that an incomplete copy has no manifest."""
    target.mkdir(parents=True, exist_ok=True)
    for pattern in ("weights-*.safetensors", "vocabulary-*.json", MANIFEST):
        for path in bundle.glob(pattern):
            write_atomically(target / path.name, path.read_bytes())


class LteKind(NamedTuple):
    """The LTEs that a ranker reads, or that a snapshot holds.

    Attributes:
        basis_version: Basis of the vectors.
        lte_window: Window in days before the end of ds, ``365-60``.
        method: How interactions are weighted.
        half_life_days: Half-life of recency weights. None for other methods, and in manifests older than this value.
    """

    basis_version: str
    lte_window: str
    method: str
    half_life_days: float | None = None


def lte_of_ranker(manifest: Manifest) -> LteKind | None:
    """The LTEs that a ranker reads; None when the ranker reads no LTEs."""
    if not manifest.lte_window:
        return None
    method = str(manifest.config["settings"]["method"])
    return LteKind(manifest.basis_version, manifest.lte_window, method, manifest.half_life_days)


def require_pair(manifest: Manifest, snapshot: LteKind, ds: date | str) -> None:
    """Refuse a ranker and a snapshot that do not belong together.

    A half-life that one of the two does not know fits every half-life: manifests older than this value do not hold it.

    Args:
        manifest: Manifest of the ranker.
        snapshot: The LTEs of the snapshot.
        ds: Data day of the snapshot, for the message.

    Raises:
        ModelError: The ranker reads other LTEs.
    """
    ours = lte_of_ranker(manifest)
    if ours is None:
        return
    wrong = [
        f"{name} {_shown(mine)} against {_shown(theirs)}"
        for name, mine, theirs in zip(LteKind._fields, ours, snapshot, strict=True)
        if mine != theirs and None not in (mine, theirs)
    ]
    if wrong:
        raise ModelError(f"ranker of ds {manifest.ds} and LTE snapshot of ds {ds} do not match: {', '.join(wrong)}")


def _shown(value: str | float | None) -> str:
    return repr(value) if isinstance(value, str) else f"{value:g}"
