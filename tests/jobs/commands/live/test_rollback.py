"""lte rollback --ranker --to DS: an earlier ranker reads today's LTEs, or is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.cli import dispatch
from jobs.commands.live.rollback import roll_back_ranker
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.lake.lake import Lake
from jobs.ranker.judging.live import live_folder, live_ranker, make_live
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.store.opening import open_store
from jobs.store.publish import publish
from lte_models.training.bundle import save_bundle
from lte_models.training.manifest import Manifest
from store_kit import DAY_ONE, marked_source


def trained(
    deployment: Deployment, ds: date, *, basis: str = "basis-a", method: str = "uniform", half_life: float | None = None
) -> Path:
    """A ranker's bundle of one day; its weight is the day of the month."""
    folder = bundle_folder(deployment, "ranker", ds)
    manifest = Manifest(
        kind="ranker",
        config={"settings": {"method": method}},
        basis_version=basis,
        lte_window="365-60",
        ds=ds.isoformat(),
        vocabulary_hash="",
        code_version="1",
        half_life_days=half_life,
    )
    save_bundle(folder, manifest, {"weight": torch.full((1,), float(ds.day))}, ["i1"])
    return folder


def published(deployment: Deployment, **changes: Any) -> None:
    store = open_store(deployment)
    publish(store, marked_source(1, ds=DAY_ONE, **changes))
    store.close()


OLD = DAY_ONE - timedelta(days=10)


def everything(deployment: Deployment) -> dict[str, bytes]:
    folder = live_folder(deployment)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_ranker_of_ten_days_ago_goes_live_and_one_command_undoes_it(
    deployment: Deployment, deployment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published(deployment)
    trained(deployment, OLD)
    before = make_live(deployment, trained(deployment, DAY_ONE))
    files = everything(deployment)
    flags = ["rollback", "--ranker", "--config", str(deployment_file), "--json"]
    dispatch([*flags, "--to", str(OLD), "--dry-run"])
    promised = json.loads(capsys.readouterr().out)
    assert everything(deployment) == files
    dispatch([*flags, "--to", str(OLD)])
    assert json.loads(capsys.readouterr().out) == promised
    live = live_ranker(deployment)
    assert live is not None
    assert (live.ds, live.previous) == (str(OLD), before.bundle)
    dispatch(flags)
    live = live_ranker(deployment)
    assert live is not None
    assert (live.bundle, live.ds) == (before.bundle, str(DAY_ONE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": "basis-b"}, "basis_version 'basis-b' against 'basis-a'"),
        ({"method": "recency"}, "method 'recency' against 'uniform'"),
    ],
)
@pytest.mark.parametrize("is_dry_run", [False, True])
def test_an_old_ranker_that_reads_other_ltes_is_refused(
    deployment: Deployment, changes: dict[str, Any], message: str, is_dry_run: bool
) -> None:
    published(deployment)
    trained(deployment, OLD, **changes)
    make_live(deployment, trained(deployment, DAY_ONE))
    files = everything(deployment)
    with pytest.raises(ModelError, match=message):
        roll_back_ranker(deployment, to=OLD, is_dry_run=is_dry_run)
    assert everything(deployment) == files
    assert roll_back_ranker(deployment, to=OLD, force=True).ds == str(OLD)


def test_a_day_without_a_ranker_names_the_days_that_have_one(deployment: Deployment) -> None:
    published(deployment)
    make_live(deployment, trained(deployment, DAY_ONE))
    with pytest.raises(ModelError, match=rf"no ranker of ds={OLD} .*there are ds={DAY_ONE}"):
        roll_back_ranker(deployment, to=OLD)


def half_lives(lake: Lake, days: Sequence[tuple[date, float]]) -> None:
    for day, value in days:
        lake.record_metrics(day, "compute_lte", {"half_life_days": value})


def test_an_old_ranker_of_another_half_life_is_refused(deployment: Deployment, sail: object) -> None:
    recency = replace(
        deployment,
        publish=replace(deployment.publish, method="recency"),
        ranker=replace(deployment.ranker, method="recency"),
    )
    published(recency, method="recency")
    trained(recency, OLD, method="recency")
    make_live(recency, trained(recency, DAY_ONE, method="recency"))
    lake = Lake(sail, recency.paths.lake)  # type: ignore[arg-type]
    half_lives(lake, [(OLD, 30.0), (DAY_ONE, 90.0)])
    with pytest.raises(ModelError, match="half_life_days 30 against 90"):
        roll_back_ranker(recency, to=OLD)
    half_lives(lake, [(OLD, 90.0)])
    assert roll_back_ranker(recency, to=OLD).ds == str(OLD)
    # the manifest counts more than the record
    trained(recency, OLD - timedelta(days=1), method="recency", half_life=7.0)
    half_lives(lake, [(OLD - timedelta(days=1), 90.0)])
    with pytest.raises(ModelError, match="half_life_days 7 against 90"):
        roll_back_ranker(recency, to=OLD - timedelta(days=1))


def test_flags_of_a_ranker_need_the_flag(deployment_file: Path) -> None:
    with pytest.raises(ConfigError, match="give --ranker too"):
        dispatch(["rollback", "--to", str(OLD), "--config", str(deployment_file)])
