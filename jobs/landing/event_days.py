"""State of each day of interactions: number of rows and checksum, and how far back a run wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.lake.lake import Lake
from jobs.landing.merge import DayState, day_states, state_columns
from schemas import EVENT_DAYS, INTERACTIONS

# Metric: days from the first landing day that the runs of ds wrote, up to ds. The gate reads from that day.
DAYS_BACK = "n_days_back"


def _existing(lake: Lake, days: Sequence[date]) -> DataFrame:
    return lake.read(INTERACTIONS, where={"event_date": days}) if days else lake.read(INTERACTIONS).where("false")


def _states(rows: DataFrame) -> dict[date, DayState]:
    """State of each event day of rows that are all kept."""
    found = rows.groupBy("event_date").agg(*[c.alias(n) for n, c in state_columns(F.lit(True)).items()]).collect()
    return day_states((row.event_date, row.n_kept, row.key_sum, row.row_sum) for row in found)


def _write_event_days(lake: Lake, affected: Sequence[date], wanted: Mapping[date, DayState]) -> None:
    """Write the state of the days before their rows: after a crash in between, the same rows are written again."""
    if not affected:
        return
    rows = [(day, state.n_events, state.checksum) for day, state in sorted(wanted.items())]
    found = [tuple(row) for row in lake.read(EVENT_DAYS, where={"event_date": affected}).collect()]
    if sorted(found) != rows:
        lake.replace_rows(rows, EVENT_DAYS, {"event_date": affected}, is_retried=False)


def refresh_event_days(lake: Lake, days: Sequence[date]) -> None:
    """Write the state of event days again, after something other than an ingest deleted rows from these days.

    Args:
        lake: The deployment's lake.
        days: Event days to count again; a day that is now empty loses its row.
    """
    _write_event_days(lake, days, _states(_existing(lake, days)))
