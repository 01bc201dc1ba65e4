"""A ranker of six items, its batches, and every way to read the LTE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lte_models.ranker.examples import EXAMPLE_COLUMNS, ExampleBatch, Past
from lte_models.ranker.logits.history_features import history_features
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.model import Context, Ranker
from lte_models.ranker.towers import Catalogue, RankerConfig

V, C, D = 6, 5, 8


CONFIG = RankerConfig(
    content_dim=C,
    n_types=2,
    dim=D,
    n_heads=4,
    max_length=6,
    dropout=0.0,
    id_dropout=0.0,
    id_dim=4,
    n_ids=6,
    n_categories=3,
    n_brands=2,
)


def catalogue_of_six() -> Catalogue:
    content = torch.cat([torch.zeros(1, C), F.normalize(torch.randn(V, C, generator=generator(1)), dim=1)])
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 0])  # the last item is out of vocabulary
    return Catalogue(content, ids, ids % 3, ids % 2, torch.zeros(V + 1, dtype=torch.int64))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(**changes: Any) -> Ranker:
    model = Ranker(replace(CONFIG, **changes), catalogue_of_six())
    with torch.no_grad():  # untrained zero parameters would hide what they should change
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(9)))
        model.user_tower.types.weight[0] = 0
        model.user_tower.ages.weight[0] = 0
    return model.eval()


def past_of(n_users: int) -> Past:
    user = torch.arange(n_users).repeat_interleave(2)
    items = torch.tensor([1, 3]).repeat(n_users)
    one = torch.ones(len(user))
    values = {name.removeprefix("past_"): one.numpy() for name in EXAMPLE_COLUMNS if name.startswith("past_")}
    features = torch.from_numpy(history_features(user.numpy(), values, n_users)) + items.unsqueeze(1)
    return Past(user, items, one, one, one, one, one, features)


def batch_of(items: list[list[int]], targets: list[tuple[int, int]] = ()) -> ExampleBatch:  # type: ignore[assignment]
    rows = torch.tensor(items)
    n_users, length = rows.shape
    query, target = zip(*targets, strict=True) if targets else ((), ())
    return ExampleBatch(
        items=rows,
        types=(rows > 0) * (1 + rows % 2),
        ages=(rows > 0) * (1 + torch.arange(length, 0, -1)),
        query_user=torch.arange(n_users),
        query_position=torch.full((n_users,), length - 1),
        target_query=torch.tensor(query, dtype=torch.int64),
        targets=torch.tensor(target, dtype=torch.int64),
        past=past_of(n_users),
        anchor_day=torch.zeros(n_users, dtype=torch.int64),
    )


def context_of(n_users: int, *, known: bool = True) -> Context:
    lte = torch.randn(n_users, C, generator=generator(4))
    counts = torch.randint(0, 9, (5, V + 1), generator=generator(5), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Context(lte, torch.full((n_users,), known), DailyCounts(-3, counts))


MODES = pytest.mark.parametrize("lte", ["none", "late_fusion", "feature_injection", "prefix_token"])
SHAPES = pytest.mark.parametrize(
    "shape",
    [
        {},
        {"history_features": True},
        {"affinity": True},
        {"history_features": True, "repeat_expert": True, "affinity": True},
    ],
    ids=["towers", "history", "affinity", "live"],
)
