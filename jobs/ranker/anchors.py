"""Which anchors of the ranker's examples a run has to build: those that are missing or have other inputs."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta

from jobs.basis.basis import read_basis
from jobs.config.window import LONG_DAYS, LteWindow
from jobs.lake.day import BasisDay
from jobs.lte.windows import in_window
from jobs.ranker.examples import first_landing
from schemas import EVENT_DAYS, INTERACTIONS, TRAINING_EXAMPLES

# The rules for the past are part of every inputs_id. So examples that were built by other rules are built again.
PAST_RULES = "landed by the anchor, ties by hash"


def missing_anchors(day: BasisDay) -> dict[date, str]:
    """Anchors that a run of ``ds`` needs and that are missing in the table or have other inputs, oldest first.

    The newest anchor is ``ds`` - 1; its targets are those of the test day. An anchor has no example when no user came
    on the next day.

    Args:
        day: Its lake holds training_examples, event_days and the basis; its deployment has the number of training days
            and the settings that decide an example.

    Returns:
        Anchor to the inputs_id of its rows.
    """
    # A first run trains without the days of the gate, so its training days lie further back.
    n_days = day.deployment.ranker.train_days + day.deployment.ranker.gate_days
    wanted = [day.ds - timedelta(days=back) for back in range(n_days, 0, -1)]
    now = inputs_ids(day, wanted)
    rows = day.lake.read(TRAINING_EXAMPLES, where={"basis_version": day.basis_version}).select("anchor_ds", "inputs_id")
    found = {(row["anchor_ds"], row["inputs_id"]) for row in rows.distinct().collect()}
    return {anchor: inputs_id for anchor, inputs_id in now.items() if (anchor, inputs_id) not in found}


def inputs_ids(day: BasisDay, anchors: Sequence[date]) -> dict[date, str]:
    """Hash the inputs of each anchor's examples; an anchor is left out when no user came on the next day.

    Args:
        day: Its lake holds event_days and the basis; its deployment has interaction types and half-life.
        anchors: Anchor days, oldest first.

    Returns:
        Anchor to hash. Anchors with equal hashes have equal examples.
    """
    last_target = anchors[-1] + timedelta(days=1)
    span = LteWindow((last_target - anchors[0]).days + LONG_DAYS, 0)
    rows = day.lake.read(EVENT_DAYS).where(in_window(last_target, span)).select("event_date", "n_events", "checksum")
    event_days = {row["event_date"]: (row["n_events"], row["checksum"]) for row in rows.collect()}
    landed = read_basis(day.lake, day.basis_version).groupBy("first_ds").count().collect()
    first_days = sorted(row["first_ds"] for row in landed for _ in range(row["count"]))
    first_load = first_landing(day.lake.read(INTERACTIONS))
    settings = {
        "types": day.deployment.interactions.types,
        "half_life_days": day.deployment.lte.half_life_days,
        "past": f"{PAST_RULES}, first load {first_load}",
    }
    return {
        anchor: _hash({**settings, **_read_by(anchor, event_days, first_days)})
        for anchor in anchors
        if anchor + timedelta(days=1) in event_days
    }


def _read_by(
    anchor: date, event_days: Mapping[date, tuple[int, str]], first_days: Sequence[date]
) -> dict[str, Iterable[object]]:
    """Days whose events an example of ``anchor`` holds, and the number of items known on that day and on the next day.

    Items are never removed, so their number identifies the set of known items.
    """
    reach = (anchor + timedelta(days=1 - back) for back in range(LONG_DAYS + 1))
    n_known = [bisect_right(first_days, anchor + timedelta(days=ahead)) for ahead in (0, 1)]
    return {"days": [[day.isoformat(), *event_days[day]] for day in reach if day in event_days], "n_known": n_known}


def _hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
