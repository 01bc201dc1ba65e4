"""lte user --page: one user's LTE as a page that answers "why do I see this"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from jobs.basis.nearest import item_titles
from jobs.commands.users.user import UserView, user_view
from jobs.config.sections import Deployment
from jobs.config.window import LteWindow
from jobs.lake.reader import LakeReader, lake_reader
from jobs.lte.windows import window_days
from jobs.ranker.judging.live import live_bundle_folder
from jobs.registry.bundles import ModelError
from jobs.report.front import environment
from jobs.serving.ranker import events_of, example_of, ranked, served_ranker
from jobs.store.opening import open_store
from jobs.store.reader import SnapshotReader
from lte_models.files import write_atomically
from schemas import INTERACTIONS, ITEM_EMBEDDINGS, ITEMS, LTE_DRIFT

SHOWN = 10
DRIFT_RUNS = 30
DAY = timedelta(days=1)
NO_CATEGORY = "no category"


@dataclass(frozen=True)
class Parts:
    """What the vector is made of.

    Attributes:
        categories: Category to its share of the weights, largest first.
        months: Month (YYYY-MM) to its share, oldest first.
        n_unknown: Interactions in the window whose item has no vector; they are not in the shares.
        entered: Titles of the items whose interactions entered the window on the day of the snapshot.
        left: Titles of those that left the window.
    """

    categories: Mapping[str, float]
    months: Mapping[str, float]
    n_unknown: int
    entered: Sequence[str]
    left: Sequence[str]


@dataclass(frozen=True)
class Shown:
    """What the live ranker shows, with and without the LTE.

    Attributes:
        rows: Title, place with the LTE and place without it; None where the item is not among the first.
        problem: Why there is nothing to show; empty otherwise.
    """

    rows: Sequence[tuple[str, int | None, int | None]]
    problem: str = ""


def write_user_page(deployment: Deployment, user_id: str, path: Path) -> None:
    """Write the page of a user. It holds personal data: `lte erase` cannot find a page outside the reports.

    Args:
        deployment: Whose store and tables.
        user_id: The user.
        path: The page.

    Raises:
        jobs.commands.users.user.UnknownUserError: The live snapshot holds no such user.
        jobs.store.snapshot.OnlineStoreError: Nothing is live, or the store does not answer.
    """
    view, lake = user_view(deployment, user_id, n_nearest=SHOWN), lake_reader(deployment)
    page = (
        environment()
        .get_template("user.html.j2")
        .render(
            view=view,
            deployment=deployment.deployment.name,
            parts=parts_of(lake, deployment, view),
            drifts=drifts_of(lake, view),
            shown=shown_items(deployment, user_id),
        )
    )
    write_atomically(path, page)


def parts_of(lake: LakeReader, deployment: Deployment, view: UserView) -> Parts:
    """Shares of categories and months in the user's vector, and what moved at the ends of the window.

    An interaction has the weight that compute_lte gave it: 1, or 2^(-age in days / half-life) for recency. Where the
    configuration counts distinct items, only the newest interaction of an item counts.
    """
    first, after = window_days(view.ds, LteWindow.parse(view.lte_window))
    rows = _interactions(lake, view.user_id, first - DAY, after)  # from the first day of yesterday's window
    held = [row for row in rows if row["event_date"] >= first]
    known = _known(lake, view, {row["item_id"] for row in held})
    categories = _categories(lake, known)
    weights = _weights([row for row in held if row["item_id"] in known], deployment, view)
    titles = item_titles(lake, sorted({row["item_id"] for row in rows}))
    by_category = _summed((categories.get(item) or NO_CATEGORY, weight) for (item, _), weight in weights)
    return Parts(
        _shares(dict(sorted(by_category.items(), key=lambda each: (-each[1], each[0])))),
        _shares(dict(sorted(_summed((f"{day:%Y-%m}", weight) for (_, day), weight in weights).items()))),
        sum(row["item_id"] not in known for row in held),
        _titles_of_day(rows, after - DAY, titles),
        _titles_of_day(rows, first - DAY, titles),
    )


def _interactions(lake: LakeReader, user_id: str, first: date, after: date) -> list[dict[str, Any]]:
    """item_id and event_date of the user's interactions on the days from ``first`` to the day before ``after``."""
    days = [first + n * DAY for n in range((after - first).days)]
    where: Any = {"user_id": user_id, "event_date": days}
    rows = lake.rows(INTERACTIONS, columns=["item_id", "event_date"], where=where)
    return sorted(rows, key=lambda row: (row["event_date"], row["item_id"]))


def _summed(weights: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, weight in weights:
        found[name] = found.get(name, 0.0) + weight
    return found


def _known(lake: LakeReader, view: UserView, items: set[str]) -> set[str]:
    """The items that have a vector in the basis of the snapshot."""
    if not items:
        return set()
    where: Any = {"basis_version": view.basis_version, "item_id": sorted(items)}
    rows = lake.rows(ITEM_EMBEDDINGS, columns=["item_id", "first_ds"], where=where)
    return {row["item_id"] for row in rows if row["first_ds"] <= view.ds}


def _categories(lake: LakeReader, items: set[str]) -> dict[str, str | None]:
    """Item to the category of its newest version."""
    columns = ["item_id", "category", "landing_ds"]
    rows = lake.rows(ITEMS, columns=columns, where={"item_id": sorted(items)}) if items else []
    return {row["item_id"]: row["category"] for row in sorted(rows, key=lambda row: row["landing_ds"])}


def _weights(
    held: Sequence[Mapping[str, Any]], deployment: Deployment, view: UserView
) -> list[tuple[tuple[str, date], float]]:
    """(item, day) and weight of each interaction that counts."""
    if deployment.lte.count == "distinct":
        held = list({row["item_id"]: row for row in held}.values())  # rows are in the order of days: the newest stays
    half_life = deployment.lte.half_life_days
    return [
        (
            (row["item_id"], row["event_date"]),
            2.0 ** (-(view.ds - row["event_date"]).days / half_life) if view.method == "recency" else 1.0,
        )
        for row in held
    ]


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _titles_of_day(rows: Sequence[Mapping[str, Any]], day: date, titles: Mapping[str, str | None]) -> list[str]:
    return [titles.get(row["item_id"]) or row["item_id"] for row in rows if row["event_date"] == day]


def drifts_of(lake: LakeReader, view: UserView) -> list[dict[str, Any]]:
    """The user's one-day drift in the last runs, newest first."""
    days = [view.ds - n * DAY for n in range(DRIFT_RUNS)]
    where: Any = {"ds": days, "method": view.method, "lte_window": view.lte_window, "user_id": view.user_id}
    columns = ["ds", "offset_days", "drift", "bound", "cosine", "n_in", "n_out"]
    rows = lake.rows(LTE_DRIFT, columns=columns, where=where)
    return sorted((row for row in rows if row["offset_days"] == 1), key=lambda row: row["ds"], reverse=True)


def shown_items(deployment: Deployment, user_id: str) -> Shown:
    """The first items of the live ranker for the user: as served, and as if the user had no LTE."""
    if not deployment.ranker.enabled:
        return Shown((), "The configuration has turned off the ranker.")
    if live_bundle_folder(deployment) is None:
        return Shown((), "No ranker is live.")
    lake, reader = lake_reader(deployment), SnapshotReader(open_store(deployment))
    try:
        stored = reader.get_many([user_id])
        served = served_ranker(lake, deployment, stored.manifest.ds, SHOWN)
        batch = example_of(deployment, served, user_id, events_of(lake, served, user_id))
        nobody = replace(stored, embeddings=np.zeros_like(stored.embeddings), n_items=np.zeros_like(stored.n_items))
        with_lte, without = (
            [item_id for item_id, _ in ranked(served, each, batch, SHOWN)] for each in (stored, nobody)
        )
    except ModelError as error:
        return Shown((), str(error))
    finally:
        reader.close()
    return Shown(_places(with_lte, without, item_titles(lake, sorted({*with_lte, *without}))))


def _places(
    with_lte: Sequence[str], without: Sequence[str], titles: Mapping[str, str | None]
) -> list[tuple[str, int | None, int | None]]:
    """Title and places of each item, in the order with the LTE; items that the LTE displaced come last."""
    ordered = [*with_lte, *(item for item in without if item not in with_lte)]
    return [(titles.get(item) or item, _place(with_lte, item), _place(without, item)) for item in ordered]


def _place(items: Sequence[str], item: str) -> int | None:
    return items.index(item) + 1 if item in items else None
