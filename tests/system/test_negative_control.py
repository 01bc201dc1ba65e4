"""The made shop's negative control, by the ranker: the LTE helps where a long-term taste is planted, and only there.

A shop with taste and one without, everything else alike; examples, training and evaluation are those of the daily run.
A seed changes a ranker's score by 1-3 %, which a test over users does not see: in the shop without taste, a single seed
can look significant in either direction. So the prefix-token ranker is compared with the same ranker without LTE over
three seeds, averaged before users are paired, as all experiments do. The sharper comparison needs no second training:
the same weights, fed with the user's own LTE or with another user's.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from checkout import ROOT
from jobs.basis.basis import encoder_config
from jobs.config.models import LteMode, RankerSection
from jobs.config.sections import BasisSection
from jobs.landing.catalogue import texts_of
from jobs.ranker.examples import ExamplesOfUser
from jobs.ranker.items import METADATA, CandidateItems
from jobs.ranker.judging.evaluation import score
from jobs.ranker.readers import ExampleReader, context_of, user_ids
from jobs.ranker.scorers import RankerScorer
from jobs.samples.fashion.items import make_items
from jobs.samples.fashion.users import ShopConfig, simulate_interactions, stock_shelf
from jobs.train_ranker import fit, new_ranker
from lte_models.encoders.loading import load_encoder
from lte_models.evaluation.comparison import Comparison, compare
from lte_models.ranker.examples import ExampleBatch, ExampleCollate
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.training.sampling import rank_by_frequency
from lte_models.training.stream import StagedRows, stage

CLIP = ROOT / "lte_models" / "assets" / "catalogue_clip"
SHOP = ShopConfig(users=5000, days=440, sessions_per_day=0.03, seed=11)
FIRST = (date.fromisoformat(SHOP.first_day) - date(1970, 1, 1)).days
TYPES = ("click", "wishlist", "cart", "checkout")
# Day numbers of the simulation; the first anchor has a whole long window behind it.
TRAIN, VALIDATION, TEST = range(366, 410), range(410, 414), range(414, 439)
SEEDS = (0, 1, 2)
SETTINGS = RankerSection(
    history_features=False,
    negatives_share=1.0,
    dim=32,
    epochs=4,
    patience=4,
    batch_size=32,
    learning_rate=3e-3,
    max_length=20,
    cutoff=100,
)

METRIC = f"ndcg_at_{SETTINGS.cutoff}"

pytestmark = [pytest.mark.slow, pytest.mark.control]


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    return make_items(240, seed=SHOP.seed)


@pytest.fixture(scope="module")
def content(items: pd.DataFrame) -> np.ndarray:
    """The words of each item by the CLIP that ships: float32 [V, 512]."""
    encoder = load_encoder(encoder_config(BasisSection(encoder="open_clip", weights=str(CLIP))))
    return encoder.encode_texts(texts_of(items))


def staged(items: pd.DataFrame, interactions: pd.DataFrame, folder: Path) -> dict[str, StagedRows]:
    """Examples of the three spans of days; item_index = place in ``items``."""
    number = pd.Series(np.arange(len(items)), index=items["item_id"])
    events = pd.DataFrame(
        {
            "user_id": interactions["user_id"],
            "ts": interactions["event_ts"].astype("int64") // 10**9,
            "item": number.reindex(interactions["item_id"]).to_numpy(),
            "type": interactions["interaction_type"].map(TYPES.index),
        }
    )
    users = [
        {"user_id": user, "events": rows.to_dict("records")}
        for user, rows in events.set_index("user_id").groupby(level=0)
    ]
    parts = {}
    for name, days in {"train": TRAIN, "validation": VALIDATION, "test": TEST}.items():
        task = ExamplesOfUser(tuple(FIRST + day for day in days), half_life_days=90.0)
        parts[name] = stage(task(iter([pa.RecordBatch.from_pylist(users)])), ("anchor_day", "user_id"), folder / name)
    return parts


def shop_of(items: pd.DataFrame, interactions: pd.DataFrame, content: np.ndarray) -> CandidateItems:
    """Items by how often they occur before the test day."""
    before = interactions["event_ts"] < pd.Timestamp(SHOP.first_day, tz="UTC") + timedelta(days=TEST[0])
    counts = interactions.loc[before, "item_id"].value_counts().reindex(items["item_id"]).fillna(0).to_numpy(np.int64)
    order = rank_by_frequency(counts)
    row_of_index = np.zeros(len(items), dtype=np.int64)
    row_of_index[order] = np.arange(1, len(items) + 1)
    return CandidateItems(
        item_ids=items["item_id"].iloc[order].tolist(),
        row_of_index=row_of_index,
        content=np.vstack([np.zeros((1, content.shape[1]), np.float32), content[order]]),
        metadata={name: items[name].iloc[order].tolist() for name in METADATA},
        counts=np.concatenate([[0], counts[order]]),
        daily=DailyCounts(FIRST, torch.zeros((1, len(items) + 1), dtype=torch.int32)),  # history features are off
    )


class SwappedScorer(RankerScorer):
    """Gives each user who has an LTE that of another one, everything else as it is."""

    def __call__(self, batch: ExampleBatch) -> torch.Tensor:
        with torch.no_grad():
            context = context_of(batch, self.model, self.settings, self.daily)
            lte, users = context.lte.clone(), context.has_lte.nonzero().flatten()
            lte[users] = context.lte[users.roll(1)]
            context = context._replace(lte=lte)
            queries = self.model.queries(batch, context, *self.embedded)
            return self.model.candidate_logits(queries, self.rows, batch, context, self.embedded)


class Work(NamedTuple):
    """One training."""

    lte: LteMode
    seed: int
    shop: CandidateItems
    rows: dict[str, StagedRows]
    folder: Path


def ndcg_of(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """NDCG of each example of the test day after training one ranker: with own LTEs, and with swapped ones."""
    torch.set_num_threads(1)
    settings = replace(SETTINGS, lte=work.lte, seed=work.seed)
    collate = ExampleCollate(work.shop.row_of_index, max_length=settings.max_length)
    readers = {name: ExampleReader(each, collate, settings.batch_size, work.seed) for name, each in work.rows.items()}
    model, daily, name = new_ranker(work.shop, settings, TYPES).model, work.shop.daily, f"{work.lte}{work.seed}"
    fit(model, readers["train"], readers["validation"], settings, daily, work.folder / name, name)
    own, swapped = (
        score(scorer(model, settings, daily), readers["test"], [settings.cutoff]).values[METRIC, "all"]
        for scorer in (RankerScorer, SwappedScorer if work.lte != "none" else RankerScorer)
    )
    return np.asarray(own), np.asarray(swapped)


class Uplifts(NamedTuple):
    """Of the prefix token, over all test examples of all users."""

    over_none: Comparison
    over_swapped: Comparison
    by_seed: list[float]


def uplifts_of_lte(taste: float, items: pd.DataFrame, content: np.ndarray, folder: Path) -> Uplifts:
    """Train both rankers from each seed in a shop with a taste of that strength."""
    config = replace(SHOP, taste=taste)
    interactions = simulate_interactions(items, stock_shelf(items, config), config)
    rows, shop = staged(items, interactions, folder), shop_of(items, interactions, content)
    modes: tuple[LteMode, LteMode] = ("prefix_token", "none")
    work = [Work(lte, seed, shop, rows, folder) for lte in modes for seed in SEEDS]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = np.array(list(pool.map(ndcg_of, work)))  # [2 x seeds, own and swapped, examples]
    prefix, none = found[: len(SEEDS)], found[len(SEEDS) :, 0]
    users = np.unique(user_ids(rows["test"]), return_inverse=True)[1]
    own = prefix[:, 0].mean(axis=0)
    return Uplifts(
        over_none=compare(own, none.mean(axis=0), users),
        over_swapped=compare(own, prefix[:, 1].mean(axis=0), users),
        by_seed=(prefix[:, 0].mean(axis=1) / none.mean(axis=1) - 1).tolist(),
    )


def is_gain(found: Comparison) -> bool:
    return found.uplift > 0 and found.p < 0.05


def test_with_taste_the_lte_helps(items: pd.DataFrame, content: np.ndarray, tmp_path: Path) -> None:
    found = uplifts_of_lte(2.0, items, content, tmp_path)
    assert is_gain(found.over_none), found
    assert is_gain(found.over_swapped), found
    assert min(found.by_seed) > 0, found


def test_without_taste_the_lte_does_not_help(items: pd.DataFrame, content: np.ndarray, tmp_path: Path) -> None:
    found = uplifts_of_lte(0.0, items, content, tmp_path)
    assert not is_gain(found.over_none), found
    assert not is_gain(found.over_swapped), found
    assert abs(found.over_swapped.uplift) < 0.01, found
