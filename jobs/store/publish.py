"""The three actions that change the live snapshot: publish, roll back, delete a user (ADR 0009).

A publish loads a new version beside the live version. Then it reads the new version back and compares it with its
source. Only then it swaps the pointer. A publish that stops before the swap leaves the live version unchanged. The
next publish removes what the stopped publish left.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date

import pyarrow as pa

from jobs.runtime.text import counted, shown_user
from jobs.store.protocol import OnlineStore, StoreWriter
from jobs.store.rows import Checksum, row_chunks, user_key
from jobs.store.snapshot import (
    NoLiveSnapshotError,
    OnlineStoreError,
    Pointer,
    SnapshotManifest,
    Switch,
    VersionDamagedError,
    VersionGoneError,
)

LOG = logging.getLogger(__name__)

# The steps of a publish in order; `load` is announced once before each chunk.
STEPS = ("clean", "create", "load", "seal", "verify", "swap", "prune", "done")
OnStep = Callable[[str, str], None]


class PublishRefusedError(OnlineStoreError):
    """This snapshot must not become live; the message says why."""


class NewerIsLiveError(PublishRefusedError):
    """A newer ds is live, and an older ds must not replace a newer ds."""


class VerificationError(OnlineStoreError):
    """The rows that were read back from the store are not the rows that were loaded."""


@dataclass(frozen=True)
class SnapshotSource:
    """One slice of ``user_lte``, in the form that :func:`publish` needs.

    Attributes:
        ds: Data day.
        basis_version: Basis of the vectors.
        lte_window: Window, ``365-60``.
        method: How interactions were weighted.
        code_version: Version of the code that publishes.
        row_count: Number of users in the slice, counted by a separate query.
        batches: Starts a new scan. Returns batches of user_id (string), embedding (list of float32), n_items (int32).
        sample: Returns some rows of the slice in the same form, read by a separate query.
        validated: Checksum of the rows that the gates saw; None turns the comparison off.
        half_life_days: Half-life of recency weights; None for other methods.
    """

    ds: date
    basis_version: str
    lte_window: str
    method: str
    code_version: str
    row_count: int
    batches: Callable[[], Iterable[pa.RecordBatch]]
    sample: Callable[[], Iterable[pa.RecordBatch]]
    validated: str | None = None
    half_life_days: float | None = None

    def __str__(self) -> str:
        return f"user_lte ds={self.ds} method={self.method} lte_window={self.lte_window}"


@dataclass(frozen=True)
class Publication:
    """Result of a call of :func:`publish` or :func:`rollback`.

    Attributes:
        action: ``publish``, ``rollback`` or ``unchanged``.
        manifest: Manifest of the version that is live now.
        sequence: Number of the switch that made this version live.
    """

    action: str
    manifest: SnapshotManifest
    sequence: int


def log_step(step: str, detail: str) -> None:
    """Write a step to the log."""
    LOG.info("publish: %s %s", step, detail)


def publish(
    store: OnlineStore,
    source: SnapshotSource,
    *,
    force: bool = False,
    allow_basis_change: bool = False,
    after_sequence: int = 0,
    on_step: OnStep = log_step,
) -> Publication:
    """Make a snapshot live, or change nothing.

    Args:
        store: The store that gets the snapshot.
        source: The rows to publish.
        force: Publish although a newer ds is live, and load again although the same rows are live.
        allow_basis_change: Publish although the live vectors belong to another basis. Readers that work with the old
            basis refuse the new snapshot.
        after_sequence: The switch gets a larger number than this one. An emptied store no longer knows its last number.
        on_step: Called before each of :data:`STEPS` with its name and a detail.

    Returns:
        The live version. The action is ``unchanged`` when exactly these rows were live already and passed an audit.

    Raises:
        NewerIsLiveError: A newer ds is live.
        PublishRefusedError: Another basis is live, the slice is empty, or its rows are not the rows that the gates saw.
        VerificationError: The rows read back from the store differ from the loaded rows.
        BadRowError: The slice holds a row that cannot be served.
        OnlineStoreError: The store failed, or another process is publishing.
    """
    with store.writer() as writer:
        pointer = writer.pointer()
        on_step("clean", "")
        _prune(writer, pointer)
        live = _readable(writer, pointer.live)
        _refuse(source, live, force=force, allow_basis_change=allow_basis_change)
        if live is not None and not force and _is_live(writer, live, source):
            return Publication("unchanged", live, pointer.sequence)
        manifest = _load_or_remove(writer, source, on_step)
        sequence = max(pointer.sequence, after_sequence) + 1
        wanted = Pointer(manifest.version, _to_keep(writer, pointer, live), sequence)
        on_step("swap", manifest.version)
        writer.swap(pointer, wanted, "publish")
        on_step("prune", "")
        _prune(writer, wanted)
        on_step("done", manifest.version)
        return Publication("publish", manifest, sequence)


def rollback(store: OnlineStore, *, after_sequence: int = 0) -> Publication:
    """Make the previous version live; a second call undoes the first call.

    Raises:
        PublishRefusedError: There is no previous version.
        OnlineStoreError: The store failed, or another process is publishing.
    """
    with store.writer() as writer:
        pointer = writer.pointer()
        if pointer.previous is None:
            raise PublishRefusedError(f"online store {store!r}: no previous version to roll back to")
        manifest = _readable(writer, pointer.previous)
        if manifest is None:
            raise PublishRefusedError(
                f"online store {store!r}: the previous version {pointer.previous} cannot be read; publish a day instead"
            )
        # A live version that cannot be read is not kept for a switch back.
        kept = pointer.live if _readable(writer, pointer.live) else None
        wanted = Pointer(pointer.previous, kept, max(pointer.sequence, after_sequence) + 1)
        writer.swap(pointer, wanted, "rollback")
        return Publication("rollback", manifest, wanted.sequence)


def delete_user(store: OnlineStore, user_id: str) -> int:
    """Erase a user from the live and the previous version.

    The same atomic step corrects the row count and the checksum of the manifest. The digest of the user's row is
    subtracted from the checksum, and ``n_erased`` counts the deletions. So :func:`audit` still passes. Erase the user
    from ``user_lte`` first, or the next publish writes the user again. After a crash, a second call finishes the
    deletion.

    Returns:
        Number of versions that held the user.

    Raises:
        BadRowError: ``user_id`` is not 1 to 128 bytes.
        VersionDamagedError: A version cannot be read; the user is deleted from the other versions.
        OnlineStoreError: The store failed, or another process is publishing.
    """
    key = user_key(user_id)
    with store.writer() as writer:
        pointer = writer.pointer()
        # The rows that a crashed load left may hold the user too.
        _prune(writer, pointer)
        readable = [version for version in sorted(pointer.kept) if _readable(writer, version)]
        n_found = sum(writer.erase(version, key) for version in readable)
    damaged = sorted(pointer.kept - set(readable))
    if damaged:
        raise VersionDamagedError(
            f"online store {store!r}: version {', '.join(damaged)} cannot be read, so the user may still be in it; "
            "publish a day, which removes a damaged version, and erase again"
        )
    return n_found


def audit(store: OnlineStore) -> SnapshotManifest:
    """Read every row of the live version and compare count and checksum with its manifest.

    Raises:
        NoLiveSnapshotError: Nothing was published.
        VerificationError: The count or the checksum differs.
    """
    with store.writer() as writer:
        live = writer.pointer().live
        if live is None:
            raise NoLiveSnapshotError(f"online store {store!r}: nothing was published yet")
        manifest = writer.manifest(live)
        _verify_rows(writer, manifest)
        return manifest


def _refuse(source: SnapshotSource, live: SnapshotManifest | None, *, force: bool, allow_basis_change: bool) -> None:
    if source.row_count == 0:
        raise PublishRefusedError(f"{source}: no rows")
    if live is None:
        return
    if source.ds < live.ds and not force:
        raise NewerIsLiveError(
            f"{source}: ds={live.ds} is live, and live only moves forward; --force publishes the older day"
        )
    if source.basis_version != live.basis_version and not allow_basis_change:
        raise PublishRefusedError(
            f"{source}: basis_version {source.basis_version!r}, but {live.basis_version!r} is live (ds={live.ds}); "
            "--allow-basis-change publishes it"
        )


def _readable(writer: StoreWriter, version: str | None) -> SnapshotManifest | None:
    """SnapshotManifest of a version; None for no version, and None with a warning for a version that cannot be read.

    A damaged version must not block its own replacement, so it counts as absent.
    """
    if version is None:
        return None
    try:
        return writer.manifest(version)
    except (VersionGoneError, VersionDamagedError) as error:
        LOG.warning("version %s cannot be read and counts as absent: %s", version, error)
        return None


def _to_keep(writer: StoreWriter, pointer: Pointer, live: SnapshotManifest | None) -> str | None:
    """The version that a rollback switches to after a publish: the newest version that can be read."""
    if live is not None:
        return live.version
    return pointer.previous if _readable(writer, pointer.previous) else None


def _is_live(writer: StoreWriter, live: SnapshotManifest, source: SnapshotSource) -> bool:
    """Whether exactly the rows of ``source`` are live, and the live version is complete."""
    identity = (live.ds, live.basis_version, live.lte_window, live.method, live.row_count)
    if identity != (source.ds, source.basis_version, source.lte_window, source.method, source.row_count):
        return False
    checksum = Checksum()
    for chunk in row_chunks(source.batches()):
        for key, value in chunk.items():
            checksum.add(key, value)
    _require_validated(source, checksum)
    if str(checksum) != live.checksum:
        return False
    try:
        _verify_rows(writer, live)
    except (VerificationError, VersionGoneError, VersionDamagedError) as error:
        LOG.warning("the live version is damaged and is loaded again: %s", error)
        return False
    return True


def _require_validated(source: SnapshotSource, found: Checksum) -> None:
    """Refuse rows that differ from the rows that the gates saw."""
    if source.validated not in (None, str(found)):
        raise PublishRefusedError(
            f"{source}: expected checksum {source.validated} of the rows that the gates saw, got {found}: rows changed "
            "since; find out why, then run validate and publish again"
        )


def _prune(writer: StoreWriter, pointer: Pointer) -> None:
    for version in sorted(writer.versions() - pointer.kept):
        writer.remove(version)


def _load_or_remove(writer: StoreWriter, source: SnapshotSource, on_step: OnStep) -> SnapshotManifest:
    version = f"{source.ds.isoformat()}.{secrets.token_hex(4)}"
    try:
        return _load(writer, version, source, on_step)
    except Exception:
        _remove_failed(writer, version)
        raise


def _remove_failed(writer: StoreWriter, version: str) -> None:
    try:
        writer.remove(version)
    except OnlineStoreError as error:
        LOG.warning("version %s stays until the next publish: %s", version, error)


def _load(writer: StoreWriter, version: str, source: SnapshotSource, on_step: OnStep) -> SnapshotManifest:
    """Load, seal and verify one version."""
    on_step("create", version)
    writer.create(version)
    checksum, dim, row_count = Checksum(), 0, 0
    for chunk in row_chunks(source.batches()):
        on_step("load", f"{row_count} rows")
        writer.write(version, chunk)
        for key, value in chunk.items():
            checksum.add(key, value)
        row_count += len(chunk)
        dim = chunk.dim
    if row_count != source.row_count:
        raise VerificationError(f"{source}: {row_count} rows were read, {source.row_count} were counted")
    _require_validated(source, checksum)
    on_step("seal", version)
    manifest = _manifest(version, source, dim=dim, checksum=str(checksum))
    writer.seal(manifest)
    on_step("verify", version)
    _verify_rows(writer, manifest)
    _verify_sample(writer, manifest, source)
    return manifest


def _manifest(version: str, source: SnapshotSource, *, dim: int, checksum: str) -> SnapshotManifest:
    return SnapshotManifest(
        version=version,
        ds=source.ds,
        basis_version=source.basis_version,
        lte_window=source.lte_window,
        method=source.method,
        dim=dim,
        row_count=source.row_count,
        checksum=checksum,
        code_version=source.code_version,
        half_life_days=source.half_life_days,
    )


def _verify_rows(writer: StoreWriter, manifest: SnapshotManifest) -> None:
    checksum, row_count = Checksum(), 0
    for key, value in writer.rows(manifest.version):
        checksum.add(key, value)
        row_count += 1
    what = f"version {manifest.version} of ds={manifest.ds}"
    if row_count != manifest.row_count:
        raise VerificationError(
            f"{what}: {counted(row_count, 'user')} stored, {counted(manifest.row_count, 'row')} loaded; rows were lost "
            "or a user_id repeats"
        )
    if str(checksum) != manifest.checksum:
        raise VerificationError(
            f"{what}: checksum {checksum} of the stored rows, {manifest.checksum} of the loaded ones"
        )


def _verify_sample(writer: StoreWriter, manifest: SnapshotManifest, source: SnapshotSource) -> None:
    for chunk in row_chunks(source.sample()):
        stored = writer.values(manifest.version, chunk.keys)
        for (key, value), found in zip(chunk.items(), stored, strict=True):
            if found != bytes(value):
                raise VerificationError(
                    f"{source}: user_id {shown_user(key)} is stored otherwise than the table has it"
                )


def pending_switches(store: OnlineStore, logged: Iterable[int]) -> list[Switch]:
    """Switches of the store's journal that are not among the ``logged`` sequence numbers, oldest first."""
    known = set(logged)
    return [switch for switch in store.journal() if switch.sequence not in known]
