"""lte export: the file holds exactly the live snapshot, or there is no new file."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands.live import export
from jobs.commands.live.export import MANIFEST_KEY, ExportError, export_snapshot
from jobs.config.sections import Deployment
from jobs.lake.lake import Lake
from jobs.lake.predicates import Predicate
from jobs.store.opening import open_store
from jobs.store.publish import SnapshotSource, delete_user, publish
from jobs.store.snapshot import NoLiveSnapshotError, SnapshotManifest
from lte_builders import values_of
from schemas import USER_LTE

DS = date(2024, 3, 1)
USERS = {"ann": [1.0, 0.5], "bob": [0.25, -1.0], "zoë": [0.0, 0.0]}
SLICE: Predicate = {"ds": DS, "method": "uniform", "lte_window": "5-1"}


def _batch(users: dict[str, list[float]]) -> pa.RecordBatch:
    vectors = pa.array(list(users.values()), pa.list_(pa.float32()))
    return pa.record_batch(
        {"user_id": list(users), "embedding": vectors, "n_items": pa.array([3] * len(users), pa.int32())}
    )


def _publish(deployment: Deployment, users: dict[str, list[float]], ds: date = DS) -> None:
    store, batch = open_store(deployment), _batch(users)
    publish(store, SnapshotSource(ds, "basis-a", "5-1", "uniform", "1", len(users), lambda: [batch], lambda: [batch]))
    store.close()


@pytest.fixture
def live(lake: Lake, deployment: Deployment) -> Deployment:
    """Two users of the table are live as they stand there; the table has a slice of another window, too."""
    row = {"n_items": 3, "n_unknown": 0, "basis_version": "basis-a"}
    for window in ("5-1", "5-0"):
        slice_: Predicate = {**SLICE, "lte_window": window}
        users = {**USERS, "other": [9.0, 9.0]} if window == "5-0" else USERS
        rows = [values_of({"user_id": u, "embedding": v} | row | dict(slice_), USER_LTE) for u, v in users.items()]
        lake.replace_rows(rows, USER_LTE, slice_)
    _publish(deployment, USERS)
    return deployment


def test_the_file_holds_the_live_users_and_their_manifest(live: Deployment, tmp_path: Path) -> None:
    path = tmp_path / "out" / "lte.parquet"
    done = export_snapshot(live, path)
    table = pq.read_table(path)
    found = {row["user_id"]: (row["embedding"], row["n_items"]) for row in table.to_pylist()}
    assert found == {user: (vector, 3) for user, vector in USERS.items()}
    assert SnapshotManifest.from_json(table.schema.metadata[MANIFEST_KEY].decode()) == done.manifest


def test_an_erased_user_is_not_exported(live: Deployment, tmp_path: Path) -> None:
    store = open_store(live)
    delete_user(store, "bob")
    store.close()
    export_snapshot(live, tmp_path / "lte.parquet")
    assert pq.read_table(tmp_path / "lte.parquet")["user_id"].to_pylist() == ["ann", "zoë"]


def test_a_table_without_a_live_user_gives_no_file(live: Deployment, lake: Lake, tmp_path: Path) -> None:
    _publish(live, {**USERS, "new": [1.0, 1.0]})
    path = tmp_path / "lte.parquet"
    path.write_bytes(b"the earlier export")
    with pytest.raises(ExportError, match=r"expected 4 users .* got 3"):
        export_snapshot(live, path)
    assert [each.name for each in tmp_path.iterdir() if "parquet" in each.name] == ["lte.parquet"]
    assert path.read_bytes() == b"the earlier export"


def test_a_publish_in_between_ends_the_export(
    live: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.live_users

    def later(*args):
        for users in real(*args):
            _publish(live, {"ann": [7.0, 7.0]}, date(2024, 3, 2))
            yield users

    monkeypatch.setattr(export, "live_users", later)
    with pytest.raises(ExportError, match="ds=2024-03-02 went live during the export"):
        export_snapshot(live, tmp_path / "lte.parquet")


def test_nothing_published_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(NoLiveSnapshotError):
        export_snapshot(deployment, tmp_path / "lte.parquet")
