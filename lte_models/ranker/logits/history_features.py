"""Inputs of the history logits: a user's past with an item, centred and scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lte_models.arrays import Float32Array, IntArray

# Inputs of the history logits in the order of their columns: usual value and spread on two real shops (food, gifts),
# by which they are centred and scaled. "log" is log(1 + x), "_visits" counts days on which the user came.
FEATURE_SCALES = {
    "log_n_week": (0.0, 0.15),
    "log_n_month": (0.1, 0.3),
    "log_n_short": (0.2, 0.4),
    "log_n_year": (0.9, 0.4),
    "log_days": (0.9, 0.4),
    "log_recent": (0.4, 0.35),
    "log_last_age": (4.6, 1.1),
    "log_first_age": (5.0, 0.9),
    "log_gap": (1.2, 1.8),
    "overdue": (0.1, 0.9),
    "log_last_gap": (1.2, 1.8),
    "log_visits_since": (2.5, 1.2),
    "log_visits_from": (3.0, 1.1),
    "overdue_visits": (0.0, 0.8),
    "share_of_visits": (0.2, 0.2),
    "log_weekday": (0.2, 0.35),
    "in_last_visit": (0.1, 0.3),
    "share": (0.005, 0.01),
    "log_total": (6.5, 1.0),
    "log_visits": (3.7, 0.9),
    "log_last_visit": (2.0, 1.2),
    "log_basket": (3.0, 0.5),
}

# float32 columns, and float64 ones where numpy computes them from whole numbers
_Columns = dict[str, npt.NDArray[np.floating[Any]]]

HISTORY_FEATURES = len(FEATURE_SCALES)


def history_features(user: IntArray, past: Mapping[str, Float32Array], n_users: int) -> Float32Array:
    """Describe a user's past with an item, for the history logits (ADR 0011).

    Args:
        user: int [P].
        past: float [P] arrays, the columns ``past_*`` of the examples table by name.
        n_users: B.

    Returns:
        float32 [P, 22], centred and scaled by constants. Gaps are those between the days with the item; an item is
        overdue by the log of its age over its mean gap, 0 for an item of one day only.
    """
    columns = _item_features(past) | _user_features(user, past, n_users)
    scaled = [(columns[name] - centre) / scale for name, (centre, scale) in FEATURE_SCALES.items()]
    return np.stack(scaled, axis=1).astype(np.float32)


def _item_features(past: Mapping[str, Float32Array]) -> _Columns:
    gaps = past["days"] - 1
    gap = np.where(gaps > 0, (past["first_age"] - past["last_age"]) / np.maximum(gaps, 1), 0)
    # visits after the first day with the item, up to its last one
    between = past["visits_from"] - past["visits_since"] - 1
    visit_gap = np.where(gaps > 0, between / np.maximum(gaps, 1), 0)
    logs = ("n_week", "n_month", "n_short", "days", "last_age", "first_age", "last_gap", "visits_since", "visits_from")
    return {f"log_{name}": np.log1p(past[name]) for name in (*logs, "weekday")} | {
        "log_n_year": np.log1p(past["n_short"] + past["n_long"]),
        "log_recent": np.log1p(past["w_short"] + past["w_long"]),
        "log_gap": np.log1p(gap),
        "overdue": np.where(gaps > 0, np.log((1 + past["last_age"]) / (1 + gap)), 0),
        "overdue_visits": np.where(gaps > 0, np.log((1 + past["visits_since"]) / (1 + visit_gap)), 0),
        "share_of_visits": past["days"] / np.maximum(past["visits_from"], 1),
        "in_last_visit": (past["visits_since"] == 0).astype(np.float32),
    }


def _user_features(user: IntArray, past: Mapping[str, Float32Array], n_users: int) -> _Columns:
    n_year = past["n_short"] + past["n_long"]
    total = np.bincount(user, weights=n_year, minlength=n_users)
    visits, last_visit = np.zeros(n_users), np.full(n_users, np.inf)
    np.maximum.at(visits, user, past["visits_from"])
    np.minimum.at(last_visit, user, past["last_age"])
    return {
        "share": n_year / np.maximum(total[user], 1),
        "log_total": np.log1p(total[user]),
        "log_visits": np.log1p(visits[user]),
        "log_last_visit": np.log1p(last_visit[user]),
        "log_basket": np.log1p(total[user] / np.maximum(visits[user], 1)),
    }
