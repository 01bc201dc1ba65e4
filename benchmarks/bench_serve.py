"""Processor time of one answer of `lte serve`, without HTTP and without the store: example, towers, exact retrieval.

The ranker is untrained and its items are made: the time does not depend on what the weights say.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import numpy as np
import torch

from jobs.config.window import LONG_DAYS, day_number
from jobs.ranker.items import IntArray
from jobs.serving.history import Numbers, sent_events, serving_rows
from lte_models.ranker.examples import ExampleCollate
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.model import Context, Ranker
from lte_models.ranker.retrieval import Retriever
from lte_models.ranker.towers import Catalogue, RankerConfig

LAST, DIM, N_SENT = date(2024, 3, 1), 384, 100


def made(n_items: int, seed: int) -> tuple[Retriever, DailyCounts, Numbers, IntArray]:
    """A ranker of the default shape with history logits, over made items."""
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(n_items + 1, DIM)).astype(np.float32)
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    content[0] = 0
    codes = torch.from_numpy(np.concatenate([[0], rng.integers(1, 50, size=n_items)]))
    config = RankerConfig(
        DIM, 1, history_features=True, n_ids=n_items + 1, n_categories=50, n_brands=50, n_price_tiers=50
    )
    ids = torch.arange(n_items + 1)
    model = Ranker(config, Catalogue(torch.from_numpy(content), ids, codes, codes, codes))
    days = rng.poisson(0.05, size=(LONG_DAYS + 2, n_items + 1)).astype(np.int32)
    counts = torch.from_numpy(np.vstack([np.zeros((1, n_items + 1), np.int32), days.cumsum(axis=0, dtype=np.int32)]))
    daily = DailyCounts(day_number(LAST) - LONG_DAYS - 1, counts)
    index_of = {f"i{row}": row for row in range(n_items)}
    numbers = Numbers(index_of, np.zeros(n_items, np.int64), ("click",), LAST)
    return Retriever(model), daily, numbers, np.arange(1, n_items + 1)


def answer(retriever: Retriever, daily: DailyCounts, numbers: Numbers, collate: ExampleCollate, seed: int) -> None:
    """One answer to a request with 100 interactions in its body."""
    rng = np.random.default_rng(seed)
    end = datetime(LAST.year, LAST.month, LAST.day, tzinfo=UTC)
    picked = rng.integers(0, len(numbers.index_of), size=N_SENT).tolist()
    sent = [(f"i{row}", "click", end - timedelta(hours=int(rng.integers(0, 60 * 24)))) for row in picked]
    batch = collate(serving_rows("u", sent_events(numbers, sent), LAST, 90.0))
    lte = torch.from_numpy(rng.normal(size=(1, DIM)).astype(np.float32))
    retriever.recommend(batch, Context(lte, torch.ones(1, dtype=torch.bool), daily), 10)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one JSON value per number of items."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[6_000, 60_000])
    parser.add_argument("--requests", type=int, default=100)
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    for n_items in flags.items:
        retriever, daily, numbers, rows = made(n_items, 1)
        collate = ExampleCollate(rows)
        answer(retriever, daily, numbers, collate, 0)  # the first one allocates
        spent = []
        for seed in range(1, flags.requests + 1):
            started = time.thread_time()
            answer(retriever, daily, numbers, collate, seed)
            spent.append(1000 * (time.thread_time() - started))
        found = {f"p{q}_ms": round(float(np.percentile(spent, q)), 1) for q in (50, 99)}
        print(json.dumps({"items": n_items, "requests": flags.requests, "processor_time": found}))


if __name__ == "__main__":
    main()
