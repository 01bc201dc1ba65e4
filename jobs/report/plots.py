"""Plots of the report, as pictures inside the page: one picture per panel, so that a phone shows them one by one."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jobs.lte.windows import window_days
from jobs.report.facts import NORM_BINS, Facts, Row, coverage
from jobs.report.history import RunPoint
from lte_models.averages.drift import ACTIVITY_BUCKETS

COLOURS = {"uniform": "#1f6f8b", "recency": "#c8553d", "autoencoder": "#6a4c93", "behaviour": "#4c8c4a"}
GREY, BAD, GOOD, SECOND = "#6b7079", "#b3261e", "#1e6b3a", "#c8553d"

# Size of a panel in inches. On a phone of 390 px it is scaled by 0.8, and its text is still 11 px high.
PANEL = (4.4, 2.9)
MOST_TASKS = 6
MOST_BARS = 40

# Text stays text, and ids are the same in every run.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lte",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Picture:
    """A picture: its data address, and the text for a reader who does not see it."""

    address: str
    alt: str


@contextmanager
def _panel(pictures: list[Picture], alt: str) -> Iterator[Axes]:
    """Axes of one panel; the picture is appended when the block ends."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=PANEL, layout="constrained")
        yield figure.subplots()
        pictures.append(Picture(_address(figure), alt))


def _address(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _slices(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return sorted(
        {(row["method"], row["lte_window"]) for row in rows}, key=lambda key: (key[1], key[0] != "uniform", key)
    )


def _of_slice(rows: Sequence[Row], key: tuple[str, str]) -> list[Row]:
    return [row for row in rows if (row["method"], row["lte_window"]) == key]


def _numbers(days: Sequence[date]) -> list[float]:
    """Days as positions on an axis."""
    convert: Any = date2num
    return [float(convert(day)) for day in days]


def _colour(method: str) -> str:
    return COLOURS.get(method, GREY)


def _date_axis(axes: Axes) -> None:
    locator: Any = AutoDateLocator
    formatter: Any = ConciseDateFormatter
    ticks = locator(minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_major_formatter(formatter(ticks))


def _count_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(bottom=0)


def coverage_plot(facts: Facts) -> list[Picture]:
    """Interactions per day over all windows; the long window is shaded."""
    pictures: list[Picture] = []
    longest = max(facts.windows)
    first, _ = window_days(facts.ds, longest)
    days = [first + timedelta(days=n) for n in range((facts.ds - first).days + 1)]
    total, covered, n_events = coverage(facts, longest)
    alt = f"Interactions a day from {first} to {facts.ds}. Window {longest} holds {n_events:,} on {covered} days"
    with _panel(pictures, alt) as axes:
        axes.bar(_numbers(days), [facts.event_days.get(day, 0) for day in days], width=1.0, color=GREY)
        start, after = _numbers(window_days(facts.ds, longest))
        label = f"LTE window {longest}: data on {covered} of {total} days"
        axes.axvspan(start, after, color=COLOURS["uniform"], alpha=0.15, lw=0)
        axes.set(ylabel="interactions a day", title=label, xlim=_numbers((days[0], facts.ds + timedelta(days=1))))
        _date_axis(axes)
        _count_axis(axes)
    return pictures


def n_items_plot(facts: Facts) -> list[Picture]:
    """Users by known interactions in the window; all methods of a window count the same, so it is drawn once."""
    rows, pictures = facts.distributions.n_items, list[Picture]()
    keys = _slices(rows)
    for key in [key for key in keys if key[0] == "autoencoder" or key == next(k for k in keys if k[1] == key[1])]:
        mine = _of_slice(rows, key)
        unit = "items" if key[0] == "autoencoder" else "interactions"
        with _panel(pictures, f"Users by known {unit} in the window {key[1]}") as axes:
            axes.bar([row["bin"] for row in mine], [row["n_users"] for row in mine], color=_colour(key[0]))
            last = max(row["bin"] for row in mine)
            axes.set_xticks(range(last + 1), [_bin_name(bin_) for bin_ in range(last + 1)], rotation=60, ha="right")
            axes.set(title=f"{'/'.join(key)}: known {unit}", ylabel="users")
            axes.grid(axis="x", visible=False)
            _count_axis(axes)
    return pictures


def _bin_name(bin_: int) -> str:
    low, high = 1 << max(bin_ - 1, 0), (1 << bin_) - 1
    return "0" if bin_ == 0 else str(low) if low == high else f"{low:,}–{high:,}"


def norm_plot(facts: Facts) -> list[Picture]:
    """Users by the norm of their LTE; the axis ends at the norms that there are."""
    rows, pictures = facts.distributions.norms, list[Picture]()
    for key in _slices(rows):
        mine = _of_slice(rows, key)
        with _panel(pictures, f"Histogram of the norms of {'/'.join(key)}") as axes:
            bars, width = _wider_bins(mine)
            axes.bar(list(bars), list(bars.values()), width=0.9 * width, color=_colour(key[0]))
            axes.set(title="/".join(key), xlabel="norm of the LTE", ylabel="users")
            # A lone bar would fill the panel, so the axis shows five bins at least.
            margin = max(1.0, 2.5 - len(bars) / 2) * width
            axes.set_xlim(min(bars) - margin, max(bars) + margin)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            _count_axis(axes)
    return pictures


def _wider_bins(rows: Sequence[Row]) -> tuple[dict[float, int], float]:
    """Middle of each bar to its users, and the width of a bar: neighbouring bins are joined until the bars are few."""
    first, last = min(row["bin"] for row in rows), max(row["bin"] for row in rows)
    joined = (last - first) // MOST_BARS + 1
    bars: dict[float, int] = {}
    for row in rows:
        middle = (row["bin"] // joined + 0.5) * joined / NORM_BINS
        bars[middle] = bars.get(middle, 0) + row["n_users"]
    return bars, joined / NORM_BINS


def drift_plot(facts: Facts) -> list[Picture]:
    """Each user's drift against its bound; the line is drift = bound."""
    rows, pictures = facts.distributions.points, list[Picture]()
    for key in _slices(rows):
        mine = _of_slice(rows, key)
        with _panel(pictures, f"Drift of single users of {'/'.join(key)} against their bound") as axes:
            _drift_panel(axes, mine, key)
    return pictures


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
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="bound", ylabel="drift (L2)")
    days = rows[0]["offset_days"]
    axes.set_title(f"{'/'.join(key)}, {days} day{'s' if days > 1 else ''}: {len(moved):,} of {len(rows):,} moved")
    axes.legend(loc="upper left")


def activity_plot(facts: Facts) -> list[Picture]:
    """Cosine with the earlier LTE by activity: the 1 % quantile and the median, one line per offset."""
    rows = [row for row in facts.distributions.activity if row["cosine_p01"] is not None]
    names = [name for start, name in ACTIVITY_BUCKETS if start > 0]  # a cosine needs a vector that is not zero
    pictures: list[Picture] = []
    for key in _slices(rows):
        with _panel(pictures, f"Cosine with the earlier LTE by activity, {'/'.join(key)}") as axes:
            _activity_panel(axes, _of_slice(rows, key), names)
            axes.set(title="/".join(key), xlabel="known interactions in the window", ylabel="cosine")
    return pictures


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
    axes.legend(loc="lower right")


def curve_plot(curves: Mapping[str, Sequence[tuple[int, float]]]) -> list[Picture]:
    """One panel per metric of a training, by epoch; a training of one epoch has no curve."""
    pictures: list[Picture] = []
    for metric, points in sorted(curves.items()):
        if len(points) < 2:
            continue
        name = metric.replace("_", " ")
        with _panel(pictures, f"{name} by epoch, at the end {points[-1][1]:.4g}") as axes:
            axes.plot([epoch for epoch, _ in points], [value for _, value in points], "o-", ms=4)
            axes.set(title=name, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return pictures


Line = tuple[str, Callable[[RunPoint], float | None], str]
Series = tuple[str, list[tuple[date, float]], str]

TRENDS: Sequence[tuple[str, Sequence[Line]]] = (
    ("users with an LTE", [("users", lambda point: point.n_users, COLOURS["uniform"])]),
    ("interactions of the day", [("interactions", lambda point: float(point.n_events), COLOURS["uniform"])]),
    ("unknown share of the window, %", [("share", lambda point: _percent(point.unknown_share), COLOURS["uniform"])]),
    ("one-day drift p99, all users", [("drift p99", lambda point: point.drift_p99, COLOURS["uniform"])]),
    ("mean cosine with the day before", [("cosine", lambda point: point.cosine_mean, COLOURS["uniform"])]),
    (
        "NDCG of the rankers",
        [
            ("candidate", lambda point: point.ndcg_candidate, COLOURS["uniform"]),
            ("live", lambda point: point.ndcg_live, SECOND),
            ("best baseline", lambda point: point.ndcg_baseline, GREY),
        ],
    ),
)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def trend_plot(points: Sequence[RunPoint]) -> list[Picture]:
    """One panel per value over the last runs, and one of the slowest tasks; values never measured are absent."""
    pictures: list[Picture] = []
    for title, lines in TRENDS:
        drawn = [(name, _series(points, value), colour) for name, value, colour in lines]
        _trend_panel(pictures, title, [line for line in drawn if line[1]])
    _trend_panel(pictures, "seconds of the slowest tasks", _task_lines(points))
    return pictures


def _series(points: Sequence[RunPoint], value: Callable[[RunPoint], float | None]) -> list[tuple[date, float]]:
    found = [(point.ds, value(point)) for point in points]
    return [(ds, number) for ds, number in found if number is not None]


def _task_lines(points: Sequence[RunPoint]) -> list[Series]:
    longest: dict[str, float] = {}
    for point in points:
        for task, seconds in point.seconds.items():
            longest[task] = max(seconds, longest.get(task, 0.0))
    slowest = sorted(longest, key=lambda task: (-longest[task], task))[:MOST_TASKS]
    return [
        (task, [(point.ds, point.seconds[task]) for point in points if task in point.seconds], f"C{place}")
        for place, task in enumerate(slowest)
    ]


def _trend_panel(
    pictures: list[Picture], title: str, lines: Sequence[tuple[str, list[tuple[date, float]], str]]
) -> None:
    if not lines:
        return
    ends = ", ".join(f"{name} {series[-1][1]:,.4g}" for name, series, _ in lines)
    with _panel(pictures, f"{title} over the last runs; at the end {ends}") as axes:
        for name, series, colour in lines:
            days, values = _numbers([ds for ds, _ in series]), [value for _, value in series]
            axes.plot(days, values, "o-", ms=4, color=colour, label=name)
        axes.set_title(title)
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        _run_axis(axes, sorted({ds for _, series, _ in lines for ds, _ in series}))
        if title.startswith(("users", "interactions", "seconds")):
            axes.set_ylim(bottom=0)
        if len(lines) > 1:  # below the panel, where it hides no point
            figure: Any = axes.get_figure(root=True)
            figure.legend(loc="outside lower center", ncols=2)  # three long names are cut off


def _run_axis(axes: Axes, days: Sequence[date]) -> None:
    """A few runs have a tick each; many runs have ticks of the calendar."""
    if len(days) <= 4:
        axes.set_xticks(_numbers(days), [f"{day:%b %d}" for day in days])
        axes.set_xlim(_numbers([days[0] - timedelta(hours=12)])[0] - 0.5, _numbers([days[-1]])[0] + 0.5)
    else:
        _date_axis(axes)
