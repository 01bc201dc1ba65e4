"""lte rollback --drill: score the newest day with the rankers of earlier days against the live LTEs (paper, section 7).

Nothing that is live changes. The drill reads the rows of the live snapshot before and after, and compares the
checksums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.commands.live.rollback import require_served_pair
from jobs.config.sections import Deployment
from jobs.config.window import LteWindow
from jobs.lake.lake import Lake, Metrics, open_lake
from jobs.ranker.items import CandidateItems, load_candidates
from jobs.ranker.judging.evaluation import score
from jobs.ranker.judging.live import LiveRanker, live_bundle_folder, live_ranker
from jobs.ranker.readers import ExampleReader, days_with_examples, stage_examples, user_ids
from jobs.ranker.scorers import BATCH_USERS, LteSource, ranker_scorer
from jobs.registry.bundles import ModelError, bundle_folder, models_folder
from jobs.store.opening import open_store
from jobs.store.protocol import OnlineStore
from jobs.store.publish import audit
from jobs.store.reader import SnapshotReader
from jobs.store.snapshot import SnapshotManifest
from lte_models.arrays import Float64Array
from lte_models.evaluation.comparison import compare
from lte_models.ranker.examples import ExampleBatch, ExampleCollate
from lte_models.training.bundle import Bundle, load_bundle
from lte_models.training.manifest import BundleError
from schemas import USER_LTE

JOB = "rollback_drill"
MIN_USERS = 2


class DrillError(RuntimeError):
    """The drill found that a rollback would not work, or that something changed during the drill."""


@dataclass(frozen=True)
class OldRanker:
    """What a rollback to an earlier ranker would cost.

    Attributes:
        offset_days: Age of the ranker at the newest day.
        ds: Data day that trained it.
        loss: Share of the live ranker's NDCG that it loses; None where it was not scored.
        loss_low: Low end of the 95 % interval, clustered by user.
        loss_high: High end.
        reason: Why it was not scored; empty otherwise.
    """

    offset_days: int
    ds: str
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Drill:
    """Result of a drill.

    Attributes:
        ds: The newest day: that of the live snapshot.
        live_ds: Day of the live ranker.
        n_users: Users of the day with a known item.
        checksum: Checksum of the live snapshot, before and after.
        rankers: One entry per offset.
        failed: What went beyond ``gates.max_drill_loss``.
    """

    ds: str
    live_ds: str
    n_users: int
    checksum: str
    rankers: list[OldRanker]
    failed: list[str]


def drill(deployment: Deployment, *, is_dry_run: bool = False) -> Drill:
    """Score the day of the live snapshot with the rankers of ``drift.offsets_days`` days ago.

    Args:
        deployment: Owner of rankers, tables and store.
        is_dry_run: Whether the losses are not written to the table metrics either.

    Returns:
        The losses.

    Raises:
        ModelError: No ranker is live, or the live ranker does not read the live LTEs.
        DrillError: LTEs, snapshot or ranker changed during the drill.
        jobs.store.snapshot.OnlineStoreError: Nothing is published, or the store failed.
    """
    store = open_store(deployment)
    try:
        with open_lake(deployment, JOB, is_reading=is_dry_run) as lake:
            before = live_state(lake, deployment, store)
            found = losses(lake, deployment, store, before.snapshot)
            require_same(before, live_state(lake, deployment, store))
            if not is_dry_run:
                lake.record_metrics(before.snapshot.ds, JOB, drill_metrics(found))
            return found
    finally:
        store.close()


@dataclass(frozen=True)
class LiveState:
    """Everything that a drill must not change: the snapshot with its checksum, the pointer of the ranker, user_lte."""

    snapshot: SnapshotManifest
    ranker: LiveRanker | None
    lte_version: int | None


def live_state(lake: Lake, deployment: Deployment, store: OnlineStore) -> LiveState:
    """Read all rows of the live snapshot and compare them with its manifest.

    Raises:
        jobs.store.publish.VerificationError: The stored rows are not those of the manifest.
    """
    return LiveState(audit(store), live_ranker(deployment), lake.version(USER_LTE))


def require_same(before: LiveState, after: LiveState) -> None:
    """Refuse a drill during which something changed.

    Raises:
        DrillError: It names what changed.
    """
    now = vars(after)
    changed = [f"{name} {value} became {now[name]}" for name, value in vars(before).items() if value != now[name]]
    if changed:
        raise DrillError(f"ds={before.snapshot.ds}: expected no change during the drill, got: {'; '.join(changed)}")


def losses(lake: Lake, deployment: Deployment, store: OnlineStore, snapshot: SnapshotManifest) -> Drill:
    """Score the day with the live ranker and the earlier ones.

    Args:
        lake: Reads training_examples, items and the basis.
        deployment: Settings.
        store: Holds the live LTEs.
        snapshot: Manifest of the live LTEs.
    """
    live, ds = _live_bundle(deployment, snapshot), snapshot.ds
    # A folder of this drill alone: two drills that only read hold no lease and may run at the same time. It is under
    # models, because `lte erase` searches there for copies of rows that a kill left.
    with TemporaryDirectory(prefix="drill-", dir=models_folder(deployment) / "ranker") as folder:
        day = _staged_day(lake, deployment, snapshot, Path(folder))
        if day is None:
            return Drill(str(ds), live.manifest.ds, 0, snapshot.checksum, [], [])
        day = day.reading(store)
        ndcg = day.ndcg(live)
        rankers = [_compared(deployment, snapshot, day, offset, ndcg) for offset in deployment.drift.offsets_days]
    n_users = int((~np.isnan(ndcg)).sum())
    failed = over_limit(rankers, deployment.gates.max_drill_loss)
    return Drill(str(ds), live.manifest.ds, n_users, snapshot.checksum, rankers, failed)


def _live_bundle(deployment: Deployment, snapshot: SnapshotManifest) -> Bundle:
    folder = live_bundle_folder(deployment)
    if folder is None:
        raise ModelError("no ranker is live: evaluate_ranker makes the first one")
    bundle = load_bundle(folder, kind="ranker")
    require_served_pair(deployment, bundle.manifest, snapshot)
    if bundle.manifest.ds > str(snapshot.ds):
        raise ModelError(
            f"ranker of ds {bundle.manifest.ds}: trained on the interactions of ds {snapshot.ds}, the newest published "
            "day: publish a newer day, then start the drill again"
        )
    return bundle


@dataclass(frozen=True)
class DrillDay:
    """The newest day, ready to be scored.

    Attributes:
        deployment: Settings.
        shop: Items of the day.
        examples: Users of the day.
        reader: Live LTEs; None where the LTEs as of the anchors are read.
    """

    deployment: Deployment
    shop: CandidateItems
    examples: ExampleReader
    reader: SnapshotReader | None = None

    def reading(self, store: OnlineStore) -> DrillDay:
        """The same day with the LTEs of the online store, unless their window reaches into the day itself."""
        if LteWindow.parse(self.deployment.publish.window).end_days == 0:
            return self  # live LTEs hold the interactions that are to be predicted
        return DrillDay(self.deployment, self.shop, self.examples, SnapshotReader(store))

    def ndcg(self, bundle: Bundle) -> Float64Array:
        """NDCG of each user of the day; NaN without a known target."""
        ltes: LteSource | None = StoredLtes(self.reader, user_ids(self.examples.rows)) if self.reader else None
        scorer = ranker_scorer(bundle, self.shop, self.deployment.interactions.types, ltes)
        cutoff = self.deployment.ranker.cutoff
        return score(scorer, self.examples, [cutoff]).values[f"ndcg_at_{cutoff}", "all"]


class StoredLtes:
    """LTEs of the online store for the batches of one pass, in the order of the staged users."""

    def __init__(self, reader: SnapshotReader, users: Sequence[str]) -> None:
        self.reader, self.users, self.n_read = reader, users, 0

    def __call__(self, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
        """LTEs float [B, C] and whether there is one, bool [B], of the next B users."""
        users = self.users[self.n_read : self.n_read + len(batch.items)]
        self.n_read += len(users)
        found = self.reader.get_many(users)
        return torch.from_numpy(found.embeddings.copy()), torch.from_numpy(found.n_items > 0)


def _staged_day(lake: Lake, deployment: Deployment, snapshot: SnapshotManifest, folder: Path) -> DrillDay | None:
    """The day of the snapshot; None where nobody came."""
    anchor, basis_version = snapshot.ds - timedelta(days=1), snapshot.basis_version
    if not days_with_examples(lake, basis_version, anchor, anchor):
        return None
    shop = load_candidates(lake, snapshot.ds, basis_version, deployment.ranker.train_days)
    rows = stage_examples(lake, [anchor], basis_version, folder)
    return DrillDay(deployment, shop, ExampleReader(rows, ExampleCollate(shop.row_of_index), BATCH_USERS))


def _compared(
    deployment: Deployment, snapshot: SnapshotManifest, day: DrillDay, offset: int, live: Float64Array
) -> OldRanker:
    """Loss of the ranker of ``offset`` days ago, or the reason why it cannot read the live LTEs."""
    ds = snapshot.ds - timedelta(days=offset)
    try:
        bundle = load_bundle(bundle_folder(deployment, "ranker", ds), kind="ranker")
        require_served_pair(deployment, bundle.manifest, snapshot)
        old = day.ndcg(bundle)
    except (BundleError, ModelError) as error:
        return OldRanker(offset, str(ds), reason=str(error))
    return _loss(offset, ds, old, live)


def _loss(offset: int, ds: date, old: Float64Array, live: Float64Array) -> OldRanker:
    kept = ~np.isnan(live)
    if kept.sum() < MIN_USERS or not live[kept].any():
        return OldRanker(
            offset, str(ds), reason="fewer than two users with a known item, or the live ranker finds none"
        )
    found = compare(old[kept], live[kept], np.flatnonzero(kept))
    return OldRanker(offset, str(ds), -found.uplift, -found.high, -found.low)


def over_limit(rankers: Sequence[OldRanker], limit: float) -> list[str]:
    """The rankers whose loss is above the limit, also at the low end of the interval.

    Args:
        rankers: Scored and unscored rankers.
        limit: ``gates.max_drill_loss``.
    """
    return [
        f"the ranker of ds {each.ds} loses {each.loss:.2%} [{each.loss_low:.2%}, {each.loss_high:.2%}] of the NDCG, "
        f"gates.max_drill_loss is {limit:.2%}"
        for each in rankers
        if each.loss_low is not None and each.loss_low > limit
    ]


def drill_metrics(found: Drill) -> Metrics:
    """Metrics of a drill; the label of a loss is ``1 days``."""
    metrics: Metrics = {("n_users", ""): float(found.n_users), ("n_failed", ""): float(len(found.failed))}
    for each in found.rankers:
        label = f"{each.offset_days} days"
        metrics["is_scored", label] = float(each.loss is not None)
        values: Mapping[str, Any] = asdict(each)
        for name in ("loss", "loss_low", "loss_high"):
            if values[name] is not None:
                metrics[f"ndcg_{name}", label] = float(values[name])
    return metrics


def drill_text(found: Drill) -> str:
    """The same for a person."""
    head = f"ds={found.ds}, live ranker of ds={found.live_ds}, {found.n_users} users; nothing that is live was changed"
    lines = [head] if found.rankers else [head, "no user came on this day: nothing to score"]
    for each in found.rankers:
        what = f"not scored: {each.reason}"
        if each.loss is not None:
            what = f"loses {each.loss:+.2%} of the NDCG [{each.loss_low:+.2%}, {each.loss_high:+.2%}]"
        lines.append(f"  ranker of {each.offset_days} days ago (ds={each.ds}) {what}")
    return "\n".join([*lines, *(f"FAILED: {text}" for text in found.failed)])
