"""LTE methods beside each other, without a ranker: how well z Eᵀ alone finds what users buy in the next 60 days.

    python benchmarks/bench_lte_methods.py --config configs/online_retail_ii.toml --ends 2011-12-09 2011-09-01
    python benchmarks/bench_lte_methods.py --config configs/complete_journey.toml --ends 2017-12-31 --methods behaviour

Reads the landing files of the deployment (docs/landing.md). A period that ends on day E has the window [E - 365 d,
E - 60 d) as history and [E - 60 d, E) as targets: nothing that is fitted sees the targets. Everything that is fitted
leaves out one user in twenty; the hidden items of these users give the AUC. Candidates are the items of the window.
`new` counts only items that the user did not have in the window, and only such items are candidates then.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse

from jobs.basis.basis import encoder_config
from jobs.config.loading import load_deployment
from lte_models.arrays import Float32Array, Float64Array, IntArray
from lte_models.autoencoder import Autoencoder, AutoencoderConfig, FittedParts, ItemHistories, autoencoder_loss
from lte_models.averages.behaviour import behaviour_vectors
from lte_models.averages.whitening import Whitening, whitening
from lte_models.encoders.base import item_text
from lte_models.encoders.loading import basis_version, load_encoder
from lte_models.evaluation.metrics import query_metrics
from lte_models.training.sampling import LogUniformSampler, negatives_for_share
from lte_models.training.trainer import Task, TrainConfig, Trainer

TEXTS = ("title", "description", "category", "brand")
CACHE = Path(__file__).resolve().parent.parent / "build" / "lte-methods"
BATCH_USERS = 256
WINDOW_DAYS, LAG_DAYS, N_FOLDS, HIDDEN_SHARE, CUTOFF = 365, 60, 20, 0.2, 500


@dataclass(frozen=True)
class Shop:
    """Interactions and basis; user and item are numbers.

    Attributes:
        events: Columns user, item, day (days since 1970).
        vectors: float32 [V, D].
    """

    events: pd.DataFrame
    vectors: Float32Array


def read_shop(config: Path) -> Shop:
    """Interactions and items of a deployment's landing files; the vectors are encoded once and kept under build/."""
    deployment = load_deployment(config)
    landing = Path(deployment.paths.landing)
    items = pd.read_parquet(landing / "items").drop_duplicates("item_id", keep="last")
    events = pd.read_parquet(landing / "interactions", columns=["user_id", "item_id", "event_ts"])
    items = items[items["item_id"].isin(events["item_id"].unique())].sort_values("item_id")
    texts = [item_text(*(row.get(name) for name in TEXTS)) for row in items.to_dict("records")]
    encoder = encoder_config(deployment.basis)
    file = CACHE / f"{deployment.deployment.name}-{basis_version(encoder)}-{len(texts)}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, load_encoder(encoder, basis_version(encoder)).encode_texts(texts))
    number = pd.Series(np.arange(len(items)), index=items["item_id"].to_numpy())
    known = events[events["item_id"].isin(number.index)]
    day = (known["event_ts"].dt.tz_localize(None) - pd.Timestamp(0)).dt.days.to_numpy()
    users = pd.factorize(known["user_id"], sort=True)[0]
    table = pd.DataFrame({"user": users, "item": number[known["item_id"]].to_numpy(), "day": day})
    return Shop(table, unit(np.load(file)))


def unit(vectors: Float32Array) -> Float32Array:
    """Rows of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@dataclass(frozen=True)
class Period:
    """One period of one shop, items renumbered to those of the window, most users first.

    Attributes:
        vectors: float32 [V, D].
        counts: Interactions in the window, [U, V], users with an item in the window and a target.
        ages: Age in days of the newest of them, at the end of the targets, same pattern.
        fit: Histories of all users but those held out, ones, [F, V].
        targets: Items of the next 60 days, ones, [U, V].
        held_out: bool [U].
    """

    vectors: Float32Array
    counts: sparse.csr_array
    ages: sparse.csr_array
    fit: sparse.csr_array
    targets: sparse.csr_array
    held_out: NDArray[np.bool_]


def period(shop: Shop, end: date) -> Period:
    """Cut a period out of a shop; ``end`` is the first day after the targets."""
    age = (np.datetime64(end) - np.datetime64("1970-01-01")).astype(np.int64) - shop.events["day"]
    history = shop.events[(age > LAG_DAYS) & (age <= WINDOW_DAYS)].assign(age=age)
    future = shop.events[(age > 0) & (age <= LAG_DAYS)]
    pairs = history.groupby(["user", "item"]).agg(n=("age", "size"), age=("age", "min")).reset_index()
    popularity = pairs["item"].value_counts()
    order = popularity.index[np.lexsort((popularity.index, -popularity.to_numpy()))].to_numpy()
    row = pd.Series(np.arange(len(order)), index=order)
    future = future[future["item"].isin(order)].drop_duplicates(["user", "item"])
    n_users = int(shop.events["user"].max()) + 1

    def matrix(rows: pd.DataFrame, values: NDArray[np.generic]) -> sparse.csr_array:
        at = (rows["user"].to_numpy(), row[rows["item"]].to_numpy())
        return sparse.csr_array((values, at), shape=(n_users, len(order)))

    counts, ages = matrix(pairs, pairs["n"].to_numpy(float)), matrix(pairs, pairs["age"].to_numpy(float))
    targets = matrix(future, np.ones(len(future)))
    has, held = np.diff(counts.indptr) > 0, np.arange(n_users) % N_FOLDS == 0
    judged = np.flatnonzero(has & (np.diff(targets.indptr) > 0))
    fit = counts[np.flatnonzero(has & ~held)]
    fit.data[:] = 1
    return Period(shop.vectors[order], counts[judged], ages[judged], fit, targets[judged], held[judged])


Encode = Callable[[sparse.csr_array, sparse.csr_array], Float32Array]


@dataclass(frozen=True)
class Method:
    """A way from histories to vectors, and the item vectors that they are multiplied with.

    Attributes:
        encode: Counts and ages [U, V] to float32 [U, D].
        decoder: float32 [V, D].
    """

    encode: Encode
    decoder: Float32Array


def average(weights: sparse.csr_array, vectors: Float32Array) -> Float32Array:
    """Weighted means; zero for an empty history."""
    total = np.asarray(weights.sum(axis=1)).ravel()
    return np.asarray((weights @ vectors) / np.where(total > 0, total, 1)[:, None], np.float32)


def decayed(ages: sparse.csr_array, counts: sparse.csr_array, half_life_days: float) -> sparse.csr_array:
    """Counts times 2^(-age / half-life)."""
    return sparse.csr_array(
        (counts.data * np.exp2(-ages.data / half_life_days), counts.indices, counts.indptr), shape=counts.shape
    )


def averages(vectors: Float32Array, map_: Whitening | None, decoder: Float32Array) -> Method:
    """Uniform averages of ``vectors``, whitened by ``map_``."""
    move = map_.averages if map_ else (lambda z: z)
    return Method(lambda counts, _: move(average(counts, vectors)), decoder)


def ndcg(scores: Float32Array, targets: sparse.csr_array) -> Float64Array:
    """NDCG at 500 of each user, with NaN for a user without targets; equal scores rank by popularity."""
    users = np.repeat(np.arange(len(scores)), np.diff(targets.indptr))
    order = np.argsort(-scores, axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(scores.shape[1])[None, :], axis=1)
    ranks = places[users, targets.indices] + 1
    return query_metrics(ranks, users, len(scores), CUTOFF)["ndcg"]


def cosines(left: Float32Array, right: Float32Array) -> Float64Array:
    """Cosine of each pair of rows; 0 where a row is zero."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("ud,ud->u", left, right)
    found: Float64Array = np.divide(products, lengths, out=np.zeros(len(left)), where=lengths > 0)
    return found


def measure(method: Method, cut: Period) -> dict[str, float]:
    """NDCG of all and of new items, AUC on hidden items, norms, cosine with the mean of the user's items.

    The mean is that of the items as the decoder holds them: whitened, where it is.
    """
    z = method.encode(cut.counts, cut.ages)
    scores = z @ method.decoder.T
    every = ndcg(scores, cut.targets)
    had = cut.counts.nonzero()
    scores[had] = -np.inf
    fresh = sparse.csr_array(cut.targets - cut.targets.multiply(cut.counts > 0))
    fresh.eliminate_zeros()
    new = ndcg(scores, fresh)
    norms = np.linalg.norm(z, axis=1)
    return {
        "ndcg": float(np.nanmean(every)),
        "ndcg_new": float(np.nanmean(new)),
        "auc_hidden": hidden_auc(method, cut),
        "cosine_mean": float(np.median(cosines(z, average(cut.counts, method.decoder)))),
        "norm_p50": float(np.median(norms)),
        "norm_p01": float(np.quantile(norms, 0.01)),
        "norm_p99": float(np.quantile(norms, 0.99)),
    }


def hidden_auc(method: Method, cut: Period) -> float:
    """Chance that a hidden item scores above an item that the user never had, over users that nothing was fitted on."""
    rows = np.flatnonzero(cut.held_out & (np.diff(cut.counts.indptr) > 1))
    counts, ages = cut.counts[rows], cut.ages[rows]
    hide = np.random.default_rng(0).random(counts.nnz) < HIDDEN_SHARE
    hidden, seen = counts.copy(), [counts.copy(), ages.copy()]
    hidden.data[~hide] = 0
    for each in seen:
        each.data[hide] = 0
    for each in (hidden, *seen):
        each.eliminate_zeros()
    scores = method.encode(seen[0], seen[1]) @ method.decoder.T
    found = [_auc(scores[at], hidden[[at]].indices, counts[[at]].indices) for at in range(len(rows))]
    return float(np.nanmean(found)) if found else float("nan")


def _auc(scores: Float32Array, hidden: IntArray, had: IntArray) -> float:
    others = np.sort(np.delete(scores, had))
    if not len(hidden) or not len(others):
        return float("nan")
    below = np.searchsorted(others, scores[hidden], "left") + np.searchsorted(others, scores[hidden], "right")
    return float(np.mean(below / 2) / len(others))


def closed_forms(cut: Period, l2s: Sequence[float], ranks: Sequence[int]) -> dict[str, Callable[[], Method]]:
    """Averages of the basis and of behaviour vectors."""
    basis, white = cut.vectors, whitening(cut.vectors)
    decoder = white.items(basis)
    centred = Whitening(white.mean, np.eye(len(white.mean)))
    found: dict[str, Callable[[], Method]] = {
        "uniform, raw": lambda: averages(basis, None, basis),
        "uniform, centred": lambda: averages(basis, centred, centred.items(basis)),
        "uniform, whitened": lambda: averages(basis, white, decoder),
        "recency 90 d, whitened": lambda: Method(
            lambda counts, ages: white.averages(average(decayed(ages, counts, 90.0), basis)), decoder
        ),
    }
    for l2 in l2s:
        found[f"behaviour l2 {l2:g}, whitened"] = partial(_behaviour, cut, l2, 0, white)
        found[f"behaviour l2 {l2:g}, raw"] = partial(_behaviour, cut, l2, 0, None)
    for rank in ranks:
        found[f"behaviour l2 {l2s[0]:g} rank {rank}, whitened"] = partial(_behaviour, cut, l2s[0], rank, white)
    return found


def _behaviour(cut: Period, l2: float, rank: int, map_: Whitening | None) -> Method:
    """Behaviour vectors are made of the centred basis, so only the linear part of the map applies to them."""
    started = time.monotonic()
    vectors = behaviour_vectors(cut.fit, cut.vectors, l2=l2, rank=rank)
    print(f"  l2 {l2:g}, rank {rank}: {time.monotonic() - started:.1f} s")
    decoder = map_.items(cut.vectors) if map_ else cut.vectors
    moved = np.asarray(vectors @ map_.matrix, np.float32) if map_ else vectors
    return Method(lambda counts, _: average(counts, moved), decoder)


MENDED = {"objective": "multinomial", "input": "root", "input_dropout": 0.5, "has_offset": True, "whitened": True}

# Name to the form, and the number of steps.
FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "paper, 150 steps": ({}, 150),
    "paper, 600 steps": ({}, 600),
    "+ offset": ({"has_offset": True}, 600),
    "+ multinomial": ({"has_offset": True, "objective": "multinomial"}, 600),
    "+ root input": ({"has_offset": True, "objective": "multinomial", "input": "root"}, 600),
    "+ dropout": ({**MENDED, "whitened": False}, 600),
    "mended T 1": (MENDED, 600),
    "mended T 10": ({**MENDED, "temperature": 10.0}, 600),
    "mended T 20": ({**MENDED, "temperature": 20.0}, 600),
    "mended T 40": ({**MENDED, "temperature": 40.0}, 600),
    "mended, tfidf": ({**MENDED, "temperature": 20.0, "input": "tfidf"}, 600),
    "mended, 1200 steps": ({**MENDED, "temperature": 20.0}, 1200),
}


def histories_of(matrix: sparse.csr_array) -> ItemHistories:
    """The rows of a matrix as flat histories."""
    return ItemHistories(
        torch.from_numpy(matrix.indices.astype(np.int64)), torch.from_numpy(matrix.indptr[:-1].astype(np.int64))
    )


def autoencoders(cut: Period, seed: int) -> dict[str, Callable[[], Method]]:
    """The paper's form, then one change after the other."""
    return {
        f"autoencoder {name}": partial(_autoencoder, cut, form, steps, seed) for name, (form, steps) in FORMS.items()
    }


def _autoencoder(cut: Period, form: dict[str, Any], steps: int, seed: int) -> Method:
    model = fitted(cut, form, seed)
    started = time.monotonic()
    train(model, cut.fit, steps, seed)
    print(f"  trained in {time.monotonic() - started:.0f} s")
    white = whitening(cut.vectors)
    is_whitened = model.config.whitened

    def encode(counts: sparse.csr_array, _: sparse.csr_array) -> Float32Array:
        with torch.no_grad():
            lte = model(histories_of(counts)).numpy()
        return white.items(lte) if is_whitened else lte

    return Method(encode, white.items(cut.vectors) if is_whitened else cut.vectors)


def fitted(cut: Period, form: dict[str, Any], seed: int) -> Autoencoder:
    """A new autoencoder of one form."""
    n_items, dim = cut.vectors.shape
    n_negatives = negatives_for_share(n_items, 0.2)
    config = AutoencoderConfig(n_items=n_items, dim=dim, n_negatives=n_negatives, seed=seed, **form)
    model = Autoencoder(config, torch.from_numpy(cut.vectors))
    white = whitening(cut.vectors)
    share = (np.asarray(cut.fit.sum(axis=0)).ravel() + 0.5) / (cut.fit.shape[0] + 1)
    model.fit(FittedParts(torch.from_numpy(share), torch.from_numpy(white.mean), torch.from_numpy(white.matrix)))
    return model


def train(model: Autoencoder, users: sparse.csr_array, steps: int, seed: int) -> None:
    """Train for a number of steps of 256 users; no early stop."""
    sampler = LogUniformSampler(model.config.n_items, model.config.n_negatives)
    per_epoch = max(1, users.shape[0] // BATCH_USERS)

    def batches(epoch: int) -> list[ItemHistories]:
        order = np.random.default_rng((seed, epoch)).permutation(users.shape[0])
        return [histories_of(users[order[at * BATCH_USERS : (at + 1) * BATCH_USERS]]) for at in range(per_epoch)]

    task = Task(model, lambda batch, rng: autoencoder_loss(model, sampler, batch, rng), batches, None, "bench")
    with tempfile.TemporaryDirectory() as folder:
        Trainer(task, TrainConfig(epochs=-(-steps // per_epoch), seed=seed), Path(folder)).run()
    model.eval()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the methods, one JSON line each, and print the means over periods as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--ends", type=date.fromisoformat, nargs="+", required=True)
    parser.add_argument("--methods", nargs="+", default=[""], help="only methods whose name holds one of these texts")
    parser.add_argument("--l2", type=float, nargs="+", default=[100.0])
    parser.add_argument("--seed", type=int, default=0, help="of the autoencoders")
    parser.add_argument("--ranks", type=int, nargs="*", default=[])
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    shop, found = read_shop(flags.config), []
    for end in flags.ends:
        cut = period(shop, end)
        print(f"{end}: {cut.counts.shape[0]} users, {cut.counts.shape[1]} items, {cut.fit.shape[0]} fitted on")
        methods = closed_forms(cut, flags.l2, flags.ranks) | autoencoders(cut, flags.seed)
        for name, make in methods.items():
            if any(part in name for part in flags.methods):
                found.append({"end": str(end), "method": name, **measure(make(), cut)})
                print(json.dumps(found[-1]), flush=True)
    table = pd.DataFrame(found).drop(columns="end").groupby("method", sort=False).mean()
    print(table.to_string(float_format="%.4f"))


if __name__ == "__main__":
    main()
