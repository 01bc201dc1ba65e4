"""lte experiment stability: an older ranker reads today's LTEs (paper, section 7, Table 2).

A ranker that is X days old is trained on the days up to X days before the fresh one and judged on the same days. It
reads today's LTEs (what one live version serves) or the LTEs of its own day (what a versioned store would serve).

Axes: B user-days, S seeds, C content width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.analyses.windows import Encoder, Moved
from jobs.autoencoder.histories import ranked_histories
from jobs.config.models import AutoencoderSection, ExperimentSection
from jobs.experiments.autoencoder import encoder_of_batches, fit_encoder, load_encoder
from jobs.experiments.plan import ExampleSet, Variant
from jobs.experiments.run import counts_of
from jobs.experiments.statistics import Compared, JudgedUserDays, contrast_rows, plain_row
from jobs.experiments.tables import markdown_table, percent
from jobs.experiments.training import fitted_ranker, judged_batches, ranked
from jobs.experiments.work import (
    CUTOFF,
    Work,
    prepare_worker,
    result_file,
    staged_shop,
    write_result,
)
from lte_models.arrays import Float64Array, IntArray
from lte_models.evaluation.ab_test import linearised

EXAMPLES = ExampleSet("analysis", 60, 100, 365)
PAPER_TABLE_2 = {1: (0.007, 0.997, 0.0069), 5: (0.028, 0.994, 0.0101), 10: (0.054, 0.985, 0.0165)}
NONE = "none"
Row = dict[str, Any]


def stability_variant(method: str, *, history: bool) -> Variant:
    """The ranker with a prefix token of a method; method "none" is the ranker without LTE."""
    if method == NONE:
        return Variant(history=history, examples=EXAMPLES)
    return Variant("prefix_token", method, history=history, examples=EXAMPLES)


# --- workers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChainWork:
    """Train one autoencoder after another, each from the weights of the earlier one, as the daily run does.

    Attributes:
        folder: Folder of the results.
        result: Name of the result; the weights of offset X are in ``<result>-X.safetensors``.
        places: Offset and folder with staged histories and shop, oldest models first.
        seed: Seed.
        settings: Sizes.
        autoencoder: Section [autoencoder].
        is_warm: Whether a training starts from the earlier weights.
    """

    folder: Path
    result: str
    places: tuple[tuple[int, Path], ...]
    seed: int
    settings: ExperimentSection
    autoencoder: AutoencoderSection
    is_warm: bool = True


@dataclass(frozen=True)
class AgedWork:
    """Train a ranker on the days up to some days ago and judge it on the evaluation days.

    Attributes:
        folder: Folder of the results.
        result: Name of the result.
        training: The training; its folder holds the staged rows.
        ltes: File with LTEs of the evaluation days: ``today`` and ``own``; None for a ranker without LTE.
        encoder: Weights of the autoencoder that made the LTEs of the training; None for averages.
    """

    folder: Path
    result: str
    training: Work
    ltes: Path | None
    encoder: Path | None


def run_stability(work: ChainWork | AgedWork) -> str:
    """Do one piece of work and keep its arrays; returns a line for the log."""
    prepare_worker()
    started = time.monotonic()
    if isinstance(work, ChainWork):
        name, arrays = f"autoencoders, seed {work.seed}, warm {work.is_warm}", chain_arrays(work)
    else:
        variant = work.training.variant
        assert variant is not None
        name = f"{variant.label}, history {variant.history}, {work.training.folder.name}, seed {work.training.seed}"
        arrays = aged_arrays(work, variant)
    seconds = time.monotonic() - started
    write_result(result_file(work.folder, work.result), seconds, arrays)
    return f"{name}: {seconds:.1f} s"


def aged_arrays(work: AgedWork, variant: Variant) -> dict[str, npt.NDArray[Any]]:
    """``today``: ranks int [T] with today's LTEs; ``own``: with the LTEs of the ranker's own day."""
    encoder = encoder_of_batches(work.encoder, staged_shop(work.training.folder)) if work.encoder else None
    fitted = fitted_ranker(work.training, variant, encoder)
    test = judged_batches(work.training, variant, fitted.ltes)
    if work.ltes is None:
        ranks = ranked(fitted.model, test)[0].astype(np.int32)
        return {"today": ranks, "own": ranks}
    found = {}
    with np.load(work.ltes) as stored:
        starts = np.cumsum([0, *(len(item.batch.items) for item in test)])
        for name in ("today", "own"):
            vectors, has_lte = torch.from_numpy(stored[name]), torch.from_numpy(stored[f"has_{name}"])
            replaced = [
                item._replace(context=item.context._replace(lte=vectors[low:high], has_lte=has_lte[low:high]))
                for item, low, high in zip(test, starts[:-1], starts[1:], strict=True)
            ]
            found[name] = ranked(fitted.model, replaced)[0].astype(np.int32)
    return found


def chain_arrays(work: ChainWork) -> dict[str, npt.NDArray[Any]]:
    """Train the chain and write the weights of each autoencoder; the arrays are the validation scores by offset."""
    scores: dict[str, npt.NDArray[Any]] = {}
    before: Mapping[str, torch.Tensor] | None = None
    for offset, place in work.places:
        fitted = fit_encoder(place, replace(work.autoencoder, seed=work.seed), work.settings, before)
        fitted.save(encoder_file(work, offset))
        scores[f"recall-{offset}"] = np.array(fitted.scores["recall"])
        before = fitted.weights if work.is_warm else None
    return scores


def encoder_file(work: ChainWork, offset: int) -> Path:
    """Weights of the autoencoder that is ``offset`` days older than the freshest one."""
    return result_file(work.folder, f"{work.result}-{offset}").with_suffix(".safetensors")


def encoder_of(file: Path, content: npt.NDArray[np.float32], row_of_index: IntArray) -> Encoder:
    """Encodes histories of item_index; NaN for a user with a history of unknown items only."""
    model, ranks = load_encoder(file, content)
    rank_of_index = np.where(row_of_index > 0, ranks[row_of_index], -1)

    def encode(index: IntArray, lengths: IntArray) -> npt.NDArray[np.float32]:
        histories = ranked_histories(index, lengths, rank_of_index, keep_empty=True)
        n_known = torch.bincount(histories.users(), minlength=len(lengths)).numpy()
        with torch.no_grad():
            found: npt.NDArray[np.float32] = model(histories).numpy()
        found[(lengths > 0) & (n_known == 0)] = np.nan
        return found

    return encode


# --- results ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgedRanks:
    """Ranks of rankers of one method, one age and one setting of the history features.

    Attributes:
        today: int [T] per seed, with today's LTEs.
        own: int [T] per seed, with the LTEs of the ranker's own day.
    """

    today: Sequence[IntArray]
    own: Sequence[IntArray]


Key = tuple[str, str, int]  # method, history "on" or "off", offset


@dataclass(frozen=True)
class StabilityResult:
    """All results.

    Attributes:
        ranks: Key to ranks; offset 0 is the fresh ranker.
        moved: (method, offset) to what moved, over all users and evaluation days, one entry per seed.
        judged: User-days.
    """

    ranks: Mapping[Key, AgedRanks]
    moved: Mapping[tuple[str, int], Sequence[Moved]]
    judged: JudgedUserDays

    def mean_ndcg(self, ranks: Sequence[IntArray]) -> Float64Array:
        """NDCG of each user-day, seeds averaged: float [B]."""
        values = [self.judged.values(each, "all", CUTOFF)["ndcg"] for each in ranks]
        return np.asarray(np.mean(values, axis=0))


@dataclass(frozen=True)
class Resilience:
    """Difference of two relative changes of NDCG, with its 95 % interval, clustered by user."""

    value: float
    low: float
    high: float


def resilience(
    pair: tuple[Float64Array, Float64Array], base: tuple[Float64Array, Float64Array], users: IntArray
) -> Resilience:
    """Relative resilience (paper, section 7.2): change of a model with age, less the change of the baseline.

    Each ratio of sums is linear in its users to first order: :func:`lte_models.evaluation.ab_test.linearised`.

    Args:
        pair: NDCG of the old and of the fresh ranker with LTE, float [B] each.
        base: NDCG of the old and of the fresh ranker without LTE, float [B] each.
        users: int [B].
    """
    _, index = np.unique(users, return_inverse=True)
    shares = []
    for old, fresh in (pair, base):
        of_users = [np.bincount(index, weights=each).astype(np.float64) for each in (old, fresh)]
        shares.append(linearised(of_users[0], of_users[1]))
    difference = shares[0] - shares[1]  # one number per user, whose mean is the difference of the two ratios
    value, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
    return Resilience(value, value - 1.96 * error, value + 1.96 * error)


def stability_rows(result: StabilityResult) -> list[Row]:
    """Rows of table experiments."""
    counts = counts_of(result.judged)
    rows: list[Row] = []
    for method, history, offset in result.ranks:
        if offset:
            rows += _age_rows(result, (method, history, offset), counts)
    for (method, offset), seeds in result.moved.items():
        for metric, values in moved_values(seeds).items():
            rows.append(plain_row(f"{method} LTE, {offset} days", "none", metric, values, **counts))
    return rows


def _age_rows(result: StabilityResult, key: Key, counts: Mapping[str, int]) -> list[Row]:
    (method, history, offset), ranks = key, result.ranks
    label = "no LTE" if method == NONE else f"prefix token, {method}"
    old, fresh = ranks[key], ranks[method, history, 0]
    name = f"{label}, {offset} days old"
    rows = list(
        contrast_rows(Compared(name, f"{label}, fresh", history, old.today, fresh.today), result.judged, CUTOFF)
    )
    if method == NONE:
        return rows
    own = Compared(f"{name}, LTEs of its own day", name, history, old.own, old.today)
    rows += contrast_rows(own, result.judged, CUTOFF)
    found = resilience_of(result, key)
    for suffix, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
        rows.append(plain_row(name, history, f"relative_resilience{suffix}", [value], **counts))
    return rows


def resilience_of(result: StabilityResult, key: Key) -> Resilience:
    """Relative resilience of one method and age against the ranker without LTE."""
    method, history, offset = key
    pairs = [
        tuple(result.mean_ndcg(result.ranks[each, history, age].today) for age in (offset, 0))
        for each in (method, NONE)
    ]
    return resilience((pairs[0][0], pairs[0][1]), (pairs[1][0], pairs[1][1]), result.judged.user)


def moved_values(seeds: Sequence[Moved]) -> dict[str, list[float]]:
    """Metric to its values, one per seed: what Table 2 says about the LTEs themselves."""
    found: dict[str, list[float]] = {"tau_mean": [float(each.tau.mean()) for each in seeds]}
    for name in ("cosine", "centred"):
        values = [getattr(each, name) for each in seeds]
        found[f"{name}_mean"] = [float(np.nanmean(each)) for each in values]
        found[f"{name}_p01"] = [float(np.nanquantile(each, 0.01)) for each in values]
    found["drift_p99"] = [float(np.quantile(each.drift, 0.99)) for each in seeds]
    found["drift_of_bound_max"] = [_largest_share(each) for each in seeds]
    return found


def _largest_share(each: Moved) -> float:
    """Largest drift as a share of its bound; NaN without bound."""
    is_judged = each.bound > 0
    return float((each.drift[is_judged] / each.bound[is_judged]).max()) if is_judged.any() else float("nan")


MOVED_HEAD = (
    "LTE",
    "days",
    "τ",
    "cosine",
    "p01",
    "centred",
    "p01",
    "drift p99",
    "largest drift / bound",
    "paper: τ, cosine",
)
AGED_HEAD = ("LTE", "history", "days", "old / fresh", "no LTE, old / fresh", "relative resilience", "95 % interval",
             "own day's LTEs / today's", "paper")  # fmt: skip


def stability_text(result: StabilityResult, head: str) -> str:
    """Table 2 in Markdown.

    Args:
        result: The results.
        head: First lines.
    """
    moved_lines = [_moved_line(key, seeds) for key, seeds in result.moved.items()]
    aged = [key for key in result.ranks if key[0] != NONE and key[2]]
    aged_lines = [_aged_line(result, key) for key in aged]
    parts = [head, markdown_table(MOVED_HEAD, moved_lines)]
    if aged_lines:
        parts.append(markdown_table(AGED_HEAD, aged_lines))
    return "\n\n".join(parts) + "\n"


def _moved_line(key: tuple[str, int], seeds: Sequence[Moved]) -> list[str]:
    method, offset = key
    values = {name: float(np.mean(each)) for name, each in moved_values(seeds).items()}
    paper = PAPER_TABLE_2.get(offset)
    cells = [
        f"{values[name]:.4f}" for name in ("cosine_mean", "cosine_p01", "centred_mean", "centred_p01", "drift_p99")
    ]
    share = values["drift_of_bound_max"]
    theirs = f"{paper[0]:.1%}, {paper[1]:.3f}" if paper and method == "uniform" else ""
    return [method, str(offset), f"{values['tau_mean']:.2%}", *cells, "" if np.isnan(share) else f"{share:.2f}", theirs]


def _aged_line(result: StabilityResult, key: Key) -> list[str]:
    method, history, offset = key
    old, fresh = (result.mean_ndcg(result.ranks[method, history, age].today) for age in (offset, 0))
    base_old, base_fresh = (result.mean_ndcg(result.ranks[NONE, history, age].today) for age in (offset, 0))
    own = result.mean_ndcg(result.ranks[key].own)
    found, paper = resilience_of(result, key), PAPER_TABLE_2.get(offset)
    return [
        method,
        history,
        str(offset),
        percent(old.sum() / fresh.sum() - 1),
        percent(base_old.sum() / base_fresh.sum() - 1),
        percent(found.value),
        f"{percent(found.low)} to {percent(found.high)}",
        percent(own.sum() / old.sum() - 1),
        percent(paper[2]) if paper and method == "uniform" else "",
    ]
