"""Write the live snapshot to a Parquet file, for those who cannot read the online store.

The users come from table user_lte, the vectors from the store, so no lock is held and a publish may go on. The file
appears under its name only if its rows have the count and the checksum of the live manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config.sections import Deployment
from jobs.lake.predicates import Predicate
from jobs.lake.reader import LakeReader, lake_reader
from jobs.store.opening import open_store
from jobs.store.reader import EmbeddingBatch, SnapshotReader
from jobs.store.rows import Checksum, row_chunks
from jobs.store.snapshot import OnlineStoreError, SnapshotManifest
from lte_models.files import replacing
from schemas import USER_LTE

# Users per read of the store, and per row group of the file: 8 MiB of vectors at D = 512.
USERS_A_READ = 4096
MANIFEST_KEY = b"lte_manifest"


class ExportError(OnlineStoreError):
    """The live snapshot changed during the export, or table user_lte no longer holds its users."""


@dataclass(frozen=True)
class Export:
    """A finished export."""

    path: Path
    manifest: SnapshotManifest


def export_snapshot(deployment: Deployment, path: Path) -> Export:
    """Write the live snapshot to ``path``: columns user_id, embedding, n_items; the manifest is in the file's metadata.

    Memory stays bounded. An earlier file is replaced when the new one is complete.

    Args:
        deployment: Whose snapshot.
        path: Target, ``.parquet``.

    Raises:
        ExportError: Another snapshot went live during the export, or user_lte lacks users of the live snapshot.
        OnlineStoreError: The store failed, or nothing was published.
    """
    reader = SnapshotReader(open_store(deployment))
    try:
        manifest = reader.manifest()
        with replacing(path) as unfinished:
            _write(unfinished, reader, manifest, live_users(lake_reader(deployment), manifest))
    finally:
        reader.close()
    return Export(path, manifest)


def live_users(lake: LakeReader, manifest: SnapshotManifest) -> Iterator[list[str]]:
    """User ids of the slice of user_lte that a snapshot was published from, some thousands at a time."""
    where: Predicate = {"ds": manifest.ds, "method": manifest.method, "lte_window": manifest.lte_window}
    for batch in lake.batches(USER_LTE, columns=["user_id"], where=where):
        for start in range(0, batch.num_rows, USERS_A_READ):
            yield batch["user_id"].slice(start, USERS_A_READ).to_pylist()


def _write(path: Path, reader: SnapshotReader, manifest: SnapshotManifest, users: Iterator[list[str]]) -> None:
    checksum, n_rows, schema = Checksum(), 0, export_schema(manifest)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for user_ids in users:
            found = reader.get_many(user_ids)
            if found.manifest.version != manifest.version:
                raise ExportError(
                    f"export of ds={manifest.ds}: ds={found.manifest.ds} went live during the export; export again"
                )
            batch = _rows(found, schema)
            for chunk in row_chunks([batch]):
                for key, value in chunk.items():
                    checksum.add(key, value)
            writer.write_batch(batch)
            n_rows += batch.num_rows
    _require_whole(manifest, reader, n_rows, str(checksum))


def _require_whole(manifest: SnapshotManifest, reader: SnapshotReader, n_rows: int, checksum: str) -> None:
    now = reader.manifest()
    if (n_rows, checksum, now) != (manifest.row_count, manifest.checksum, manifest):
        raise ExportError(
            f"export of ds={manifest.ds}: expected {manifest.row_count} users with checksum {manifest.checksum}, got "
            f"{n_rows} with {checksum}: a user was erased meanwhile, or user_lte changed since the publish. Export "
            f"again; if that does not help, publish ds={manifest.ds} again"
        )


def export_schema(manifest: SnapshotManifest) -> pa.Schema:
    """Columns of an export of D floats per user."""
    columns = [("user_id", pa.string()), ("embedding", pa.list_(pa.float32(), manifest.dim)), ("n_items", pa.int32())]
    return pa.schema(columns, metadata={MANIFEST_KEY: manifest.to_json().encode()})


def _rows(found: EmbeddingBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The users that the store holds."""
    kept = np.flatnonzero(found.is_found)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.embeddings[kept].reshape(-1)), found.manifest.dim)
    users = pa.array([found.user_ids[row] for row in kept], pa.string())
    return pa.record_batch([users, vectors, pa.array(found.n_items[kept])], schema=schema)
