"""Plots of the report, as pictures inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure

from jobs.lte.windows import window_days
from jobs.report.facts import NORM_BINS, Facts, Row, coverage
from lte_models.averages.drift import ACTIVITY_BUCKETS

COLOURS = {"uniform": "#1f6f8b", "recency": "#c8553d", "autoencoder": "#6a4c93", "behaviour": "#4c8c4a"}
GREY, BAD = "#8a8f98", "#b3261e"

# Text stays text, and ids are the same in every run.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lte",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def _figure(n_panels: int = 1, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8.6, height), layout="constrained")
    return figure, list(figure.subplots(1, n_panels, squeeze=False)[0])


def _picture(figure: Figure) -> str:
    """Data address of a figure."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _slices(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return sorted(
        {(row["method"], row["lte_window"]) for row in rows}, key=lambda key: (key[1], key[0] != "uniform", key)
    )


def _numbers(days: Sequence[date]) -> list[float]:
    """Days as positions on an axis."""
    convert: Any = date2num
    return [float(convert(day)) for day in days]


def _colour(method: str) -> str:
    return COLOURS.get(method, GREY)


def coverage_plot(facts: Facts) -> str:
    """Interactions per day over all windows; the long window is shaded."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure()
        longest = max(facts.windows)
        first, _ = window_days(facts.ds, longest)
        days = [first + timedelta(days=n) for n in range((facts.ds - first).days + 1)]
        axes.bar(_numbers(days), [facts.event_days.get(day, 0) for day in days], width=1.0, color=GREY)
        start, after = _numbers(window_days(facts.ds, longest))
        total, covered, _ = coverage(facts, longest)
        label = f"LTE window {longest}: {covered} of {total} days"
        axes.axvspan(start, after, color=COLOURS["uniform"], alpha=0.15, lw=0, label=label)
        axes.xaxis_date()
        axes.set(ylabel="interactions a day", xlim=_numbers((days[0], facts.ds + timedelta(days=1))))
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.18))
        return _picture(figure)


def _histogram(
    axes: Axes, rows: Sequence[Row], key: tuple[str, str], scale: float, offset: float, width: float
) -> None:
    mine = [row for row in rows if (row["method"], row["lte_window"]) == key]
    axes.bar(
        [row["bin"] * scale + offset for row in mine],
        [row["n_users"] for row in mine],
        width=width,
        color=_colour(key[0]),
        label="/".join(key),
    )


def n_items_plot(facts: Facts) -> str:
    """Users by known interactions in the window; all methods of a window count the same, so it is drawn once."""
    rows = facts.distributions.n_items
    with mpl.rc_context(STYLE):
        keys = _slices(rows)
        drawn = [key for key in keys if key[0] == "autoencoder" or key == next(k for k in keys if k[1] == key[1])]
        figure, (axes,) = _figure()
        width = 0.8 / len(drawn)
        for place, key in enumerate(drawn):
            _histogram(axes, rows, key, 1.0, (place - (len(drawn) - 1) / 2) * width, width)
        last = max(row["bin"] for row in rows)
        axes.set_xticks(range(last + 1), [_bin_name(bin_) for bin_ in range(last + 1)], rotation=45, ha="right")
        axes.set(xlabel="known interactions (autoencoder: items) in the window", ylabel="users")
        axes.grid(axis="x", visible=False)
        axes.legend()
        return _picture(figure)


def _bin_name(bin_: int) -> str:
    low, high = 1 << max(bin_ - 1, 0), (1 << bin_) - 1
    return "0" if bin_ == 0 else str(low) if low == high else f"{low:,}–{high:,}"


def norm_plot(facts: Facts) -> str:
    """Users by the norm of their LTE."""
    rows = facts.distributions.norms
    with mpl.rc_context(STYLE):
        keys = _slices(rows)
        figure, panels = _figure(len(keys))
        for axes, key in zip(panels, keys, strict=True):
            _histogram(axes, rows, key, 1 / NORM_BINS, 0.5 / NORM_BINS, 1 / NORM_BINS)
            axes.set(title="/".join(key), xlabel="norm of the LTE")
        panels[0].set_ylabel("users")
        return _picture(figure)


def drift_plot(facts: Facts) -> str:
    """Each user's drift against its bound; the line is drift = bound."""
    rows = facts.distributions.points
    with mpl.rc_context(STYLE):
        keys = _slices(rows)
        figure, panels = _figure(len(keys), height=3.6)
        for axes, key in zip(panels, keys, strict=True):
            _drift_panel(axes, [row for row in rows if (row["method"], row["lte_window"]) == key], key)
        panels[0].set_ylabel("drift (L2)")
        return _picture(figure)


def _drift_panel(axes: Axes, rows: Sequence[Row], key: tuple[str, str]) -> None:
    moved = [row for row in rows if row["drift"] > 0 and row["bound"] > 0]
    kept, broken = ([row for row in moved if row["bound_ok"] is is_kept] for is_kept in (True, False))
    low = min((min(row["drift"], row["bound"]) for row in moved), default=1e-3) / 1.5
    high = max((max(row["drift"], row["bound"]) for row in moved), default=1.0) * 1.5
    axes.plot([low, high], [low, high], color=GREY, lw=1, label="drift = bound")
    axes.scatter([r["bound"] for r in kept], [r["drift"] for r in kept], s=8, alpha=0.4, color=_colour(key[0]), lw=0)
    if broken:
        at = [row["bound"] for row in broken], [row["drift"] for row in broken]
        axes.scatter(*at, s=40, color=BAD, marker="x", label="bound broken")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="bound")
    days = rows[0]["offset_days"]
    title = f"{'/'.join(key)}, {days} day{'s' if days > 1 else ''}\n{len(moved):,} of {len(rows):,} drawn users moved"
    axes.set_title(title, fontsize=10)
    axes.legend(loc="upper left")


def activity_plot(facts: Facts) -> str:
    """Cosine with the earlier LTE by activity: the 1 % quantile and the median, one line per offset."""
    rows = [row for row in facts.distributions.activity if row["cosine_p01"] is not None]
    names = [name for start, name in ACTIVITY_BUCKETS if start > 0]  # a cosine needs a vector that is not zero
    with mpl.rc_context(STYLE):
        keys = _slices(rows)
        figure, panels = _figure(len(keys), height=3.2)
        for axes, key in zip(panels, keys, strict=True):
            mine = [row for row in rows if (row["method"], row["lte_window"]) == key]
            _activity_panel(axes, mine, names)
            axes.set(title="/".join(key), xlabel="known interactions in the window")
        panels[0].set_ylabel("cosine")
        return _picture(figure)


def _activity_panel(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    offsets = sorted({row["offset_days"] for row in rows})
    for place, offset in enumerate(offsets):
        mine = sorted(
            (row for row in rows if row["offset_days"] == offset), key=lambda row: names.index(row["activity"])
        )
        at = [names.index(row["activity"]) for row in mine]
        colour = f"C{place}"
        for column, style, text in (("cosine_p01", "o-", "lowest 1 %"), ("cosine_p50", "o:", "median")):
            axes.plot(at, [row[column] for row in mine], style, color=colour, ms=4, label=f"{offset} d, {text}")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.3, len(names) - 0.7)
    axes.legend(fontsize=8)


def curve_plot(curves: dict[str, list[tuple[int, float]]]) -> str:
    """One panel per metric of a training, by epoch."""
    with mpl.rc_context(STYLE):
        figure, panels = _figure(len(curves))
        for axes, (metric, points) in zip(panels, sorted(curves.items()), strict=True):
            axes.plot([epoch for epoch, _ in points], [value for _, value in points], "o-", ms=4)
            axes.set(title=metric.replace("_", " "), xlabel="epoch")
        return _picture(figure)
