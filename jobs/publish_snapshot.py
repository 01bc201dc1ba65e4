"""Publish the day: load the validated slice of user_lte into the online store and make it live (ADR 0009)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

import pyarrow as pa
from pyspark.sql import functions as F

from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.lake.day import Day
from jobs.lake.lake import Lake, open_lake
from jobs.lake.reader import lake_reader
from jobs.lte.settings import recorded_half_life
from jobs.ranker.judging.live import LteKind, live_manifest, require_pair
from jobs.registry.bundles import ModelError
from jobs.runtime.code_version import code_version
from jobs.runtime.entry import run_job
from jobs.runtime.flags import RUN_TYPES, job_parser
from jobs.runtime.progress import say
from jobs.runtime.text import counted
from jobs.store.opening import open_store
from jobs.store.protocol import OnlineStore
from jobs.store.publish import (
    NewerIsLiveError,
    Publication,
    PublishRefusedError,
    SnapshotSource,
    publish,
)
from jobs.store.tables import SERVED_COLUMNS, log_switches, served_slice, validated_state
from schemas import GATE_RESULTS, USER_LTE

SAMPLE_ROWS = 200
PROGRESS_CHUNKS = 25


@dataclass(frozen=True)
class PublishConfig:
    """Flags of this job.

    Attributes:
        deployment: Where everything is.
        ds: Data day to publish.
        is_backfill: Publish nothing and say so.
        force: Publish although a newer ds is live, and load again although the same rows are live.
        allow_basis_change: Publish although the live vectors belong to another basis, or the live ranker reads other
            LTEs.
    """

    deployment: Deployment
    ds: date
    is_backfill: bool = False
    force: bool = False
    allow_basis_change: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Publish the LTEs of one ds, or say why not."""
    print(publish_day(parse_flags(argv)), flush=True)


def parse_flags(argv: Sequence[str] | None) -> PublishConfig:
    """Read the flags and the configuration.

    Raises:
        ConfigError: See :func:`jobs.config.loading.load_deployment`.
        SystemExit: The flags are wrong (exit code 2).
    """
    parser = job_parser("publish_snapshot", __doc__)
    parser.add_argument("--backfill", action="store_true", help="a day filled in later: never publish")
    parser.add_argument("--run-type", choices=RUN_TYPES, default="manual", help="what started the run")
    parser.add_argument("--force", action="store_true", help="publish although a newer ds is live")
    parser.add_argument(
        "--allow-basis-change", action="store_true", help="publish another basis or window than is live"
    )
    flags: argparse.Namespace = parser.parse_args(argv)
    return PublishConfig(
        deployment=load_deployment(flags.config),
        ds=flags.ds,
        is_backfill=flags.backfill or flags.run_type == "backfill",
        force=flags.force,
        allow_basis_change=flags.allow_basis_change,
    )


def publish_day(config: PublishConfig) -> str:
    """Publish the slice of one ds that the deployment serves.

    A rerun of an old day publishes nothing while a newer day is live. This is not a failure, because otherwise no old
    day could be rerun completely.

    Returns:
        What was done, as a text.

    Raises:
        PublishRefusedError: A gate of ds failed or did not run. Or the slice is empty, mixes bases or changed since the
            gates. Or another basis is live, or the live ranker reads other LTEs.
        jobs.store.snapshot.OnlineStoreError: The store failed; the live snapshot is unchanged.
    """
    if config.is_backfill:
        return f"ds={config.ds}: a backfill never publishes; the live snapshot stays as it is"
    store = open_store(config.deployment)
    try:
        with open_lake(config.deployment, "publish_snapshot", config.ds) as lake:
            require_gates(lake, config.ds)
            source = snapshot_source(Day(lake, config.deployment, config.ds))
            require_validated(lake, source)
            require_ranker(config, source)
            return _outcome(publish_and_log(lake, store, source, config), store)
    except NewerIsLiveError as error:
        return f"not published, what is live stays: {error}"
    finally:
        store.close()


def publish_and_log(lake: Lake, store: OnlineStore, source: SnapshotSource, config: PublishConfig) -> Publication:
    """Publish and write the log of switches.

    An earlier run may have died between a switch and its row in the log. Such a row is written first.
    """
    newest = log_switches(lake, store)
    done = publish(
        store,
        source,
        force=config.force,
        allow_basis_change=config.allow_basis_change,
        after_sequence=newest,
        on_step=_Progress(),
    )
    log_switches(lake, store)
    return done


def require_gates(lake: Lake, ds: date) -> None:
    """Refuse a day whose gates did not all pass; a failure that only refuses another method does not count.

    Raises:
        PublishRefusedError: The table gate_results has no row of ds, or a failed row. The message names it.
    """
    results = lake.read(GATE_RESULTS, where={"ds": ds})
    if not results.head(1):
        raise PublishRefusedError(f"table gate_results has no row of ds={ds}: validate this day first")
    is_blocking = ~F.col("success") & F.col("refused_method").isNull()
    failed = results.where(is_blocking).orderBy("table", "expectation").limit(20).collect()
    if failed:
        named = "; ".join(
            f"{row['table']}: {row['expectation']} (observed {row['observed']}, expected {row['expected']})"
            for row in failed
        )
        raise PublishRefusedError(f"ds={ds} is not published, gates failed: {named}")


def require_validated(lake: Lake, source: SnapshotSource) -> None:
    """Refuse a slice whose number of rows differs from what the gates saw; the load compares the checksum.

    Raises:
        PublishRefusedError: The gates of the day recorded no rows, or another number of rows.
    """
    state = validated_state(lake, source.ds)
    again = f"run validate for ds={source.ds} and publish again"
    if state is None:
        raise PublishRefusedError(
            f"table runs has no row of validate for ds={source.ds}, which says what the gates saw: {again}"
        )
    if source.row_count != state.n_rows:
        raise PublishRefusedError(
            f"{source}: expected {state}, as the gates saw them, got {source.row_count} rows: rows changed since; find "
            f"out why, then {again}"
        )


def require_ranker(config: PublishConfig, source: SnapshotSource) -> None:
    """Refuse LTEs that the live ranker does not read; while no ranker is live, any LTEs are accepted.

    Args:
        config: Flags; ``allow_basis_change`` says that the change is intended.
        source: The slice to publish.

    Raises:
        PublishRefusedError: basis_version, window, method or half-life differ.
    """
    manifest = live_manifest(config.deployment) if config.deployment.ranker.enabled else None
    if manifest is None or config.allow_basis_change:
        return
    try:
        kind = LteKind(source.basis_version, source.lte_window, source.method, source.half_life_days)
        require_pair(manifest, kind, source.ds)
    except ModelError as error:
        raise PublishRefusedError(
            f"{error}. A change that is meant: --allow-basis-change publishes it, and evaluate_ranker of this ds then "
            "makes a ranker live that reads it; until then the live ranker is refused its LTEs"
        ) from error


def snapshot_source(day: Day) -> SnapshotSource:
    """The slice of user_lte that a deployment serves.

    The engine counts and samples the rows. The rows to load are streamed without the engine, in bounded memory.

    Raises:
        PublishRefusedError: The slice is empty, or holds vectors of several bases.
    """
    where = served_slice(day.deployment, day.ds)
    slice_rows = day.lake.read(USER_LTE, where=where)
    counts = {row["basis_version"]: row["count"] for row in slice_rows.groupBy("basis_version").count().collect()}
    if len(counts) != 1:
        place = " ".join(f"{name}={value}" for name, value in where.items())
        raise PublishRefusedError(f"table user_lte, {place}: expected rows of one basis, got {counts or 'none'}")
    validated = validated_state(day.lake, day.ds)
    sample = slice_rows.select(*SERVED_COLUMNS).orderBy(F.md5("user_id")).limit(SAMPLE_ROWS)

    def batches() -> Iterator[pa.RecordBatch]:
        return day.lake.batches(USER_LTE, columns=SERVED_COLUMNS, where=where)

    return SnapshotSource(
        ds=day.ds,
        basis_version=next(iter(counts)),
        lte_window=day.deployment.publish.window,
        method=day.deployment.publish.method,
        code_version=code_version(),
        row_count=next(iter(counts.values())),
        batches=batches,
        sample=lambda: sample.toArrow().to_batches(),
        validated=validated.checksum if validated else None,
        half_life_days=recorded_half_life(lake_reader(day.deployment), day.ds, day.deployment.publish.method),
    )


class _Progress:
    """Reports the steps of a publish, and one of every ``PROGRESS_CHUNKS`` chunks."""

    def __init__(self) -> None:
        self._chunks = 0

    def __call__(self, step: str, detail: str) -> None:
        self._chunks += step == "load"
        if step != "load" or self._chunks % PROGRESS_CHUNKS == 1:
            say("publish_snapshot", f"{step} {detail}".rstrip())


def _outcome(done: Publication, store: OnlineStore) -> str:
    manifest = done.manifest
    what = (
        f"ds={manifest.ds}, {counted(manifest.row_count, 'user')}, {manifest.method} {manifest.lte_window}, "
        f"basis {manifest.basis_version}, checksum {manifest.checksum}"
    )
    verb = "unchanged, these rows were live already" if done.action == "unchanged" else "live"
    return f"{verb}: {what} ({store.name}, switch {done.sequence})"


if __name__ == "__main__":
    run_job(main)
