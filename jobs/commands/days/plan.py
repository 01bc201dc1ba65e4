"""lte plan: what a run of one day would do, from landing files and tables; nothing is changed.

Rows in landing files are not read. So items and events of files that no run has ingested are not in the counts of items
and examples, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from itertools import chain
from typing import Any

from pyspark.sql import functions as F

from jobs.basis.basis import catalogue_versions, configured_basis
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay
from jobs.lake.lake import open_lake
from jobs.lake.reader import lake_reader
from jobs.landing.files import landing_files, require_landing
from jobs.landing.merge import plan_batch
from jobs.ranker.anchors import missing_anchors
from jobs.runtime.text import counted
from jobs.store.opening import live_snapshot_values
from schemas import INGEST_LOG, INTERACTIONS, ITEM_EMBEDDINGS, ITEMS

JOB = "plan"
TARGETS = ("interactions", "items")


@dataclass(frozen=True)
class Plan:
    """What a run of a day would do.

    Attributes:
        ds: Data day.
        landing_days: Landing days that would be ingested: ds, and earlier days with new or changed files.
        n_files: Their files.
        n_bytes: Bytes of these files.
        basis_version: Basis that the configured encoder makes.
        n_items: Items of the ingested catalogue without a vector; those with a text or a readable picture are encoded.
        slices: LTE slices that would be computed: method/window.
        models: Models that would be trained.
        n_anchors: Days whose examples would be built.
        n_examples: Users who came on the day after each of these days: one example each.
        live_ds: Data day of the live snapshot; None if nothing is live.
        would_publish: Whether the LTEs would go live after good gates: live only moves forward.
    """

    ds: date
    landing_days: tuple[date, ...]
    n_files: int
    n_bytes: int
    basis_version: str
    n_items: int
    slices: tuple[str, ...]
    models: tuple[str, ...]
    n_anchors: int
    n_examples: int
    live_ds: str | None
    would_publish: bool

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, days as text."""
        return asdict(self) | {"ds": str(self.ds), "landing_days": [str(day) for day in self.landing_days]}


def plan_day(deployment: Deployment, ds: date) -> Plan:
    """What a run of ``ds`` would do. The lake is not held, so another run may write meanwhile.

    Args:
        deployment: The deployment.
        ds: Data day.

    Raises:
        jobs.landing.files.LandingError: The landing folder cannot be read.
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    batch, live = _batch(deployment, ds), live_snapshot_values(deployment)
    basis_version = configured_basis(deployment)
    live_ds = str(live["ds"]) if live else None
    n_items, anchors, n_examples = _counts(deployment, ds, basis_version)
    return Plan(
        ds=ds,
        landing_days=batch.days,
        n_files=len(batch.files),
        n_bytes=sum(file.size for file in batch.files),
        basis_version=basis_version,
        n_items=n_items,
        slices=tuple(f"{method}/{window}" for window in deployment.lte.windows for method in deployment.lte.methods),
        models=tuple(name for name in ("autoencoder", "ranker") if getattr(deployment, name).enabled),
        n_anchors=len(anchors),
        n_examples=n_examples,
        live_ds=live_ds,
        would_publish=live_ds is None or str(ds) >= live_ds,
    )


def _batch(deployment: Deployment, ds: date) -> Any:
    """The files that ingest would take, chosen by the code of ingest."""
    require_landing(deployment.paths.landing, TARGETS)
    files = chain.from_iterable(landing_files(deployment.paths.landing, target) for target in TARGETS)
    rows = lake_reader(deployment).rows(INGEST_LOG, columns=["source_file", "bytes"])
    return plan_batch(files, {row["source_file"]: row["bytes"] for row in rows if row["source_file"]}, ds)


def _counts(deployment: Deployment, ds: date, basis_version: str) -> tuple[int, Sequence[date], int]:
    """Items without a vector, anchors to build, and their examples."""
    with open_lake(deployment, JOB, ds, is_reading=True) as lake:
        basis = lake.read(ITEM_EMBEDDINGS, where={"basis_version": basis_version}).select("item_id", "first_ds")
        catalogue = catalogue_versions(lake.read(ITEMS), ds).select("item_id")
        n_items = catalogue.join(basis.select("item_id"), "item_id", "left_anti").count()
        if not deployment.ranker.enabled or basis.where(F.col("first_ds") <= F.lit(ds)).isEmpty():
            return n_items, [], 0  # before the first vector there is no basis to number items by
        anchors = list(missing_anchors(BasisDay(lake, deployment, ds, basis_version)))
        days = [anchor + timedelta(days=1) for anchor in anchors]
        came = lake.read(INTERACTIONS).where(F.col("event_date").isin(days)).select("user_id", "event_date")
        return n_items, anchors, came.distinct().count() if days else 0


def plan_text(plan: Plan) -> str:
    """The plan for a person."""
    first, last = plan.landing_days[0], plan.landing_days[-1]
    span = f"{first} to {last}" if first != last else f"{first}"
    files = f"{counted(plan.n_files, 'file')}, {plan.n_bytes / 1e6:,.1f} MB"
    if plan.would_publish:
        live = f"goes live if its gates hold; live now: {plan.live_ds or 'nothing'}"
    else:
        live = f"is not published, because ds={plan.live_ds} is live and live only moves forward"
    lines = [
        f"a run of ds={plan.ds} would, and nothing of it was done:",
        f"  ingest    {counted(len(plan.landing_days), 'landing day')} ({span}), {files}",
        f"  encode    {counted(plan.n_items, 'item')} without a vector, in basis {plan.basis_version}",
        f"  average   {', '.join(plan.slices)}",
        f"  train     {', '.join(plan.models) or 'no model'}",
        f"  examples  {counted(plan.n_anchors, 'day')}, {counted(plan.n_examples, 'example')}",
        f"  publish   ds={plan.ds} {live}",
    ]
    return "\n".join([*lines, "rows of files that are not ingested yet are not in the numbers of items and examples"])
