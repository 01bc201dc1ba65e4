"""A lake of two good days of three users."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta

from jobs.compute_drift import JOB as DRIFT_JOB
from jobs.compute_drift import write_drift
from jobs.compute_lte import JOB as LTE_JOB
from jobs.compute_lte import lte_metrics, write_lte
from jobs.config.models import AutoencoderSection
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay, Day
from jobs.lake.lake import Lake
from lte_builders import BASIS, DS, Event, put, put_basis, put_events
from schemas import (
    ITEMS,
)

YESTERDAY = DS - timedelta(days=1)


VECTORS = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [-1.0, 0.0]}


def put_items(lake: Lake, items: list[str]) -> None:
    rows = [(item, item, None, None, None, None, None, None, None, None, YESTERDAY) for item in items]
    put(lake, ITEMS, rows)


def run_lte(lake: Lake, deployment: Deployment, day: date) -> None:
    write_lte(BasisDay(lake, deployment, day, BASIS))
    lake.record_metrics(day, LTE_JOB, lte_metrics(lake, deployment.lte, day))


def fill(lake: Lake, deployment: Deployment) -> None:
    """Two days of three users; nothing enters or leaves their windows but one interaction of u."""
    put_basis(lake, VECTORS)
    put_items(lake, list(VECTORS))
    events = [Event("u", "a", 100)] * 30 + [Event("u", "b", 60), Event("v", "b", 200), Event("w", "a", 5)]
    put_events(lake, [*events, Event("v", "ghost", 200)])
    run_lte(lake, deployment, YESTERDAY)
    run_lte(lake, deployment, DS)
    lake.record_metrics(DS, DRIFT_JOB, write_drift(Day(lake, deployment, DS)))


def without_models(deployment: Deployment) -> Deployment:
    return dataclasses.replace(deployment, autoencoder=AutoencoderSection(enabled=False))
