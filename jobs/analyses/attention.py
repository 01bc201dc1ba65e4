"""lte experiment attention: what the LTE does to the attention of the last layer (paper, section 6, Figure 1).

Axes: S seeds, U user-days with 50 or more items in the sequence, B user-days.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy import stats

from jobs.experiments.plan import ExampleSet, Variant
from jobs.experiments.statistics import SHORT_GROUPS, plain_row
from jobs.experiments.tables import markdown_table
from jobs.experiments.training import Prepared, fitted_ranker, judged_batches
from jobs.experiments.work import Work, prepare_worker, result_file
from jobs.experiments.work import write_result as save_arrays
from lte_models.arrays import Float64Array, IntArray
from lte_models.evaluation.comparison import compare
from lte_models.evaluation.metrics import history_bucket
from lte_models.ranker.attention import last_query_attention
from lte_models.ranker.model import Ranker

LAST = 50  # the paper's number of positions
EXAMPLES = ExampleSet("analysis", 60, 100, 365)
PAPER_INTENSITY = {"none": 2.83, "prefix_token": 2.62}
N_RESAMPLES = 2000
Arrays = Mapping[str, npt.NDArray[Any]]
Row = dict[str, Any]


def attention_variants(history: Sequence[str]) -> list[Variant]:
    """The ranker without LTE and the ranker with a prefix token."""
    return [
        Variant(lte, history=each == "on", examples=EXAMPLES) for each in history for lte in ("none", "prefix_token")
    ]


@dataclass(frozen=True)
class AttentionWork:
    """Train one ranker and look at its attention.

    Attributes:
        folder: Folder of the results.
        result: Name of the result.
        training: The training; its folder holds the staged rows.
    """

    folder: Path
    result: str
    training: Work


def run_attention(work: AttentionWork) -> str:
    """Do one piece of work and keep its arrays; returns a line for the log."""
    prepare_worker()
    started, variant = time.monotonic(), work.training.variant
    assert variant is not None
    fitted = fitted_ranker(work.training, variant, None)
    arrays = attention_arrays(fitted.model, judged_batches(work.training, variant, fitted.ltes))
    seconds = time.monotonic() - started
    save_arrays(result_file(work.folder, work.result), seconds, arrays)
    return f"attention, {variant.lte}, history {variant.history}, seed {work.training.seed}: {seconds:.1f} s"


def attention_arrays(model: Ranker, test: Sequence[Prepared]) -> dict[str, npt.NDArray[Any]]:
    """Attention of the last position on the test days.

    Returns:
        ``n_items`` int [B]; ``share`` float [B, 50], the last layer's attention on the last 50 items with heads
        averaged, as a share of 1 (NaN for a shorter sequence); with a prefix token ``prefix`` float [B, layers, H],
        the attention on the token (NaN for a user without LTE).
    """
    parts = [_of_batch(model, item) for item in test]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_batch(model: Ranker, item: Prepared) -> dict[str, npt.NDArray[Any]]:
    weights = last_query_attention(model, item.batch, item.context).numpy()  # [layers, B, H, L]
    n_prefix = int(model.config.lte == "prefix_token")
    n_items = (item.batch.items > 0).sum(dim=1).numpy()
    found = {"n_items": n_items, "share": last_shares(weights[-1].mean(axis=1)[:, n_prefix:], n_items)}
    if n_prefix:
        prefix = weights[..., 0].transpose(1, 0, 2).copy()  # [B, layers, H]
        prefix[~item.context.has_lte.numpy()] = np.nan
        found["prefix"] = prefix
    return found


def last_shares(weights: npt.NDArray[np.float32], n_items: IntArray) -> Float64Array:
    """Attention on the last 50 items as a share of 1.

    Args:
        weights: float [B, L].
        n_items: int [B], items of each sequence.

    Returns:
        float [B, 50], oldest first; NaN for a sequence with fewer items.
    """
    share = np.full((len(weights), LAST), np.nan)
    is_long = n_items >= LAST
    if not is_long.any():
        return share  # sequences of the batch may be shorter than 50 positions
    kept = weights[is_long][:, -LAST:].astype(np.float64)
    share[is_long] = kept / kept.sum(axis=1, keepdims=True)
    return share


@dataclass(frozen=True)
class Migration:
    """The change of the shares by the LTE, with 95 % bands, clustered by user; one value per position, oldest first.

    Attributes:
        delta: Mean share with the LTE less mean share without.
        low: Lower end.
        high: Upper end.
        n_users: Users.
    """

    delta: Float64Array
    low: Float64Array
    high: Float64Array
    n_users: int


def migration(with_lte: Float64Array, without: Float64Array, users: IntArray) -> Migration:
    """Attention migration delta (paper, section 6.2).

    Args:
        with_lte: float [U, 50], shares of user-days, seeds averaged.
        without: float [U, 50], the same user-days.
        users: int [U].
    """
    _, index = np.unique(users, return_inverse=True)
    n_users = int(index.max()) + 1
    sums = np.zeros((n_users, LAST))
    np.add.at(sums, index, with_lte - without)
    means = sums / np.bincount(index)[:, None]  # one value per user: the days of one user are not independent
    delta = means.mean(axis=0)
    reach = means.std(axis=0, ddof=1) / np.sqrt(n_users) * stats.t.ppf(0.975, n_users - 1)
    return Migration(delta, delta - reach, delta + reach, n_users)


def intensity(share: Float64Array, users: IntArray) -> tuple[float, float, float]:
    """Recency intensity: attention on the last item over attention on the 50th last, with its 95 % interval.

    Args:
        share: float [U, 50].
        users: int [U].
    """
    found = compare(share[:, -1], share[:, 0], users)
    return 1 + found.uplift, 1 + found.low, 1 + found.high


def intensity_change(with_lte: Float64Array, without: Float64Array, users: IntArray) -> tuple[float, float, float]:
    """Relative change of the recency intensity by the LTE, with a 95 % interval by resampling users.

    Args:
        with_lte: float [U, 50].
        without: float [U, 50].
        users: int [U].
    """
    _, index = np.unique(users, return_inverse=True)
    ends = [with_lte[:, -1], with_lte[:, 0], without[:, -1], without[:, 0]]
    sums = np.stack([np.bincount(index, weights=each) for each in ends])  # [4, users]
    drawn = np.random.default_rng(0).multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), N_RESAMPLES)
    totals = drawn @ sums.T  # [resamples, 4]
    changes = totals[:, 0] / totals[:, 1] / (totals[:, 2] / totals[:, 3]) - 1
    low, high = np.quantile(changes, [0.025, 0.975])
    last, first, base_last, base_first = sums.sum(axis=1)
    return float(last / first / (base_last / base_first) - 1), float(low), float(high)


@dataclass(frozen=True)
class AttentionResult:
    """Results of one setting of the history features: seeds of the two rankers on the same user-days.

    Attributes:
        history: "on" or "off".
        without: Arrays of the ranker without LTE, one per seed.
        with_lte: Arrays of the ranker with a prefix token, one per seed.
        users: int [B].
        day: int [B], days since 1970.
    """

    history: str
    without: Sequence[Arrays]
    with_lte: Sequence[Arrays]
    users: IntArray
    day: IntArray

    @property
    def is_long(self) -> npt.NDArray[np.bool_]:
        """User-days with 50 or more items, bool [B]."""
        is_long: npt.NDArray[np.bool_] = self.without[0]["n_items"] >= LAST
        return is_long

    def shares(self) -> tuple[Float64Array, Float64Array, IntArray]:
        """Shares with the LTE and without, seeds averaged, float [U, 50]; and users, int [U]."""
        kept = self.is_long
        ours, theirs = (
            np.mean([each["share"][kept] for each in seeds], axis=0) for seeds in (self.with_lte, self.without)
        )
        return ours, theirs, self.users[kept]


def attention_rows(result: AttentionResult) -> list[Row]:
    """Rows of table experiments."""
    rows, kept = [], result.is_long
    counts = _counts(result, kept)
    if counts["n_users"] >= 2:
        for label, seeds in (("no LTE", result.without), ("prefix token", result.with_lte)):
            values = [intensity(each["share"][kept], result.users[kept])[0] for each in seeds]
            rows.append(plain_row(label, result.history, "recency_intensity", values, **counts))
        ours, theirs, users = result.shares()
        for name, value in zip(("", "_low", "_high"), intensity_change(ours, theirs, users), strict=True):
            rows.append(plain_row("prefix token", result.history, f"recency_intensity_change{name}", [value], **counts))
        moved = migration(ours, theirs, users)
        for name in ("delta", "low", "high"):
            values = getattr(moved, name)
            rows += [
                plain_row("prefix token", result.history, f"migration_{name}_{LAST - 1 - at:02d}", [value], **counts)
                for at, value in enumerate(values)
            ]
    return rows + prefix_rows(result)


def _counts(result: AttentionResult, kept: npt.NDArray[np.bool_]) -> dict[str, int]:
    n_users, n_days = len(np.unique(result.users[kept])), len(np.unique(result.day[kept]))
    return {"n_users": n_users, "n_queries": int(kept.sum()), "n_days": max(n_days, 1)}


def prefix_rows(result: AttentionResult) -> list[Row]:
    """Attention that the prefix token takes, by layer, head and length of the short history."""
    found = [each["prefix"] for each in result.with_lte]  # each [B, layers, H]
    buckets = history_bucket(result.with_lte[0]["n_items"])
    rows = []
    for group in ("all", *SHORT_GROUPS):
        kept = ~np.isnan(found[0][:, 0, 0]) & ((buckets == group) | (group == "all"))
        if not kept.any():
            continue
        for layer, head in np.ndindex(*found[0].shape[1:]):
            values = [float(each[kept, layer, head].mean()) for each in found]
            metric = f"prefix_share_layer_{layer + 1}_head_{head + 1}"
            row = plain_row("prefix token", result.history, metric, values, **_counts(result, kept))
            rows.append(row | {"short_history": group})
    return rows


def attention_text(results: Sequence[AttentionResult], head: str) -> str:
    """The tables in Markdown.

    Args:
        results: One entry per setting of the history features.
        head: First lines.
    """
    parts = [head]
    for result in results:
        parts += [f"History features {result.history}:", _intensity_text(result), _prefix_table(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _intensity_text(result: AttentionResult) -> str:
    if len(np.unique(result.users[result.is_long])) < 2:
        return f"Fewer than two users have {LAST} items in their sequence: no recency intensity."
    ours, theirs, users = result.shares()
    lines = []
    for label, share, paper in (("no LTE", theirs, "none"), ("prefix token", ours, "prefix_token")):
        value, low, high = intensity(share, users)
        lines.append([label, f"{value:.2f}", f"{low:.2f} to {high:.2f}", f"{PAPER_INTENSITY[paper]:.2f}"])
    change, low, high = intensity_change(ours, theirs, users)
    lines.append(["change", f"{change:+.2%}", f"{low:+.2%} to {high:+.2%}", "-7.64%"])
    moved = migration(ours, theirs, users)
    older, recent, last = moved.delta[: LAST // 2].sum(), moved.delta[LAST // 2 : -1].sum(), moved.delta[-1]
    table = markdown_table(("recency intensity", "value", "95 % interval", "paper"), lines)
    return (
        f"{table}\n\n{len(users)} user-days of {moved.n_users} users with {LAST} items or more. Share of attention "
        f"that moved: to x_N-49 to x_N-25 {older:+.4f}, to x_N-24 to x_N-1 {recent:+.4f}, to x_N {last:+.4f}."
    )


def _prefix_table(result: AttentionResult) -> str:
    rows = prefix_rows(result)
    groups = [group for group in ("all", *SHORT_GROUPS) if any(row["short_history"] == group for row in rows)]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    values = {(row["metric"], row["short_history"]): f"{row['value']:.3f}" for row in rows}
    lines = [
        [metric.removeprefix("prefix_share_").replace("_", " "), *(values.get((metric, group), "") for group in groups)]
        for metric in metrics
    ]
    return (
        markdown_table(("share of the prefix token", *(f"items {group}" for group in groups)), lines) if lines else ""
    )


def write_figure(results: Sequence[AttentionResult], title: str, path: Path) -> None:
    """Draw the attention migration with its bands, as Figure 1 of the paper.

    Args:
        results: One entry per setting of the history features.
        title: Title.
        path: PNG; its folder is made.
    """
    mpl.use("Agg")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8.5, 0.6 + 2.6 * len(results)), dpi=110, layout="constrained")
    axes = figure.subplots(len(results), 1, sharex=True, squeeze=False)[:, 0]
    for axis, result in zip(axes, results, strict=True):
        axis.set_title(f"history features {result.history}", fontsize=9, loc="left")
        axis.axhline(0, color="black", lw=0.8)
        axis.set_ylabel("share with LTE - without", fontsize=8)
        if len(np.unique(result.users[result.is_long])) < 2:
            continue
        moved = migration(*result.shares())
        place = np.arange(-LAST + 1, 1)
        axis.bar(place, moved.delta, color=["tab:green" if value > 0 else "tab:red" for value in moved.delta])
        axis.fill_between(place, moved.low, moved.high, color="gray", alpha=0.35, label="95 %, over users")
        axis.legend(fontsize=8, frameon=False)
    axes[-1].set_xlabel("position, 0 is the last interaction")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
