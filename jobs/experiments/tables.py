"""Output of an experiment: tables on standard output and as Markdown, a CSV and a plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.experiments.plan import SEQUENCE
from jobs.experiments.statistics import MAIN_METRIC, NEXT_ITEM_METRIC, SHORT_GROUPS, groups
from lte_models.evaluation.comparison import SIGNIFICANT

Row = Mapping[str, Any]

# Names of groups() without the first group, which is everything.
GROUP_NAMES = (*(f"short history {name}" for name in SHORT_GROUPS), "new items", "repeated")
HEAD = ("variant", "NDCG", "uplift", "95 % interval", "p", "seeds", "verdict", "next-item", "paper")


def experiment_text(rows: Sequence[Row], k: int) -> str:
    """All tables of one experiment, in Markdown.

    Args:
        rows: Rows of table experiments, of one experiment.
        k: Cutoff of the metrics.
    """
    parts = [_heading(rows, k)]
    for history in ("off", "on"):
        compared = _main(rows, k, history)
        if compared:
            parts.append(
                f"History features {history}:\n\n" + markdown_table(HEAD, [_line(row, rows, k) for row in compared])
            )
            parts.append(_group_table(rows, compared))
    parts += [table for table in (_baseline_table(rows, k), _other_table(rows, k)) if table]
    parts.append(signs(rows, k))
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(rows: Sequence[Row], k: int) -> str:
    first = max(rows, key=lambda row: row["n_queries"])
    whole = next((row for row in rows if row["baseline"] and row["targets"] == row["short_history"] == "all"), first)
    return (
        f"## {first['experiment']}, up to {first['ds']}\n\nNDCG@{k}, {whole['n_seeds']} seeds averaged before pairing, "
        f"{whole['n_days']} test days, {whole['n_queries']:,} user-days of {whole['n_users']:,} users."
    )


def _main(rows: Sequence[Row], k: int, history: str) -> list[Row]:
    wanted = {"metric": f"{MAIN_METRIC}_at_{k}", "targets": "all", "short_history": "all", "history": history}
    return [row for row in rows if row["baseline"] and all(row[name] == value for name, value in wanted.items())]


def _line(row: Row, rows: Sequence[Row], k: int) -> list[str]:
    same = ("variant", "baseline", "history", "targets", "short_history")
    next_item = [
        each
        for each in rows
        if each["metric"] == f"{NEXT_ITEM_METRIC}_at_{k}" and all(each[name] == row[name] for name in same)
    ]
    return [
        f"{row['variant']} against {row['baseline']}",
        f"{row['value']:.4f} : {row['baseline_value']:.4f}",
        percent(row["uplift"]),
        f"{percent(row['uplift_low'])} to {percent(row['uplift_high'])}",
        f"{row['p']:.1g}",
        f"{percent(row['uplift_seed_low'])} to {percent(row['uplift_seed_high'])}",
        row["verdict"],
        percent(next_item[0]["uplift"]) if next_item else "",
        percent(row["paper_uplift"]),
    ]


def percent(value: float | None) -> str:
    """Text like ``+1.31 %``; empty for None and for a number that is not finite."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{100 * value:+.2f} %"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, columns aligned."""
    widths = [max(len(line[at]) for line in [head, *lines]) for at in range(len(head))]
    shown = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *lines]]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {shown[0]} |", f"|{rule}|", *(f"| {line} |" for line in shown[1:])])


def _group_table(rows: Sequence[Row], compared: Sequence[Row]) -> str:
    """Uplift by length of the short history, and separately for new and repeated items; * marks p < .05."""
    lines = []
    for row in compared:
        cells = []
        for targets, short in groups()[1:]:
            wanted = {
                **{name: row[name] for name in ("variant", "baseline", "history", "metric")},
                "targets": targets,
                "short_history": short,
            }
            found = [each for each in rows if all(each[name] == value for name, value in wanted.items())]
            mark = "*" if found and found[0]["p"] < SIGNIFICANT else ""
            cells.append(f"{percent(found[0]['uplift'])}{mark}" if found else "")
        lines.append([f"{row['variant']} against {row['baseline']}", *cells])
    return markdown_table(["uplift by", *GROUP_NAMES], lines) + "\n\n`*` p < .05"


def _baseline_table(rows: Sequence[Row], k: int) -> str:
    names = [MAIN_METRIC, NEXT_ITEM_METRIC, "recall", "precision", "mrr"]
    labels: dict[tuple[str, str], None] = {}
    for row in rows:
        if not row["baseline"] and row["metric"] == f"{MAIN_METRIC}_at_{k}":
            labels[row["variant"], row["history"]] = None
    lines = []
    for variant, history in labels:
        cells = []
        for metric in (*(f"{name}_at_{k}" for name in names), "coverage_at_10", "popularity_bias_at_10"):
            cells.append(_cell(rows, variant, history, metric, ("all", "all")))
        cells += [_cell(rows, variant, history, f"{MAIN_METRIC}_at_{k}", group) for group in groups()[1:]]
        lines.append([variant, "" if history == "none" else history, *cells])
    if not lines:
        return ""
    head = ["", "history", "NDCG", "next-item", "recall", "precision", "MRR", "coverage@10", "popularity bias@10"]
    return markdown_table([*head, *(f"NDCG, {name}" for name in GROUP_NAMES)], lines)


def _cell(rows: Sequence[Row], variant: str, history: str, metric: str, group: tuple[str, str]) -> str:
    targets, short_history = group
    wanted = {
        "variant": variant,
        "history": history,
        "metric": metric,
        "targets": targets,
        "baseline": "",
        "short_history": short_history,
    }
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return f"{found[0]['value']:.4f}" if found else ""


def _other_table(rows: Sequence[Row], k: int) -> str:
    """Values that are not ranking metrics: seconds, and the scores of an autoencoder on hidden items."""
    other = [
        row
        for row in rows
        if not row["baseline"] and not row["metric"].endswith((f"_at_{k}", "_at_10")) and row["targets"] == "all"
    ]
    lines = [
        [row["variant"], row["metric"], f"{row['value']:.4g}", f"{row['seed_low']:.4g} to {row['seed_high']:.4g}"]
        for row in other
    ]
    return markdown_table(["", "", "mean", "seeds"], lines) if lines else ""


def signs(rows: Sequence[Row], k: int) -> str:
    """Lines that compare the sign of each uplift with the sign in the paper, and name uplifts that do not hold.

    Args:
        rows: Rows of one experiment.
        k: Cutoff.
    """
    lines = []
    for row in (row for history in ("off", "on") for row in _main(rows, k, history)):
        paper = row["paper_uplift"]
        if paper is None:
            continue
        name = f"{row['variant']} against {row['baseline']}, history {row['history']}"
        found, theirs = percent(row["uplift"]), percent(paper)
        is_same = (row["uplift"] >= 0) == (paper >= 0)
        word = "the same sign as" if is_same else "ANOTHER SIGN than"
        doubt = "" if row["verdict"].startswith("holds") else f", and {row['verdict']}"
        lines.append(f"- {name}: {found}, {word} the paper's {theirs}{doubt}.")
    return "\n".join(lines)


def write_csv(rows: Sequence[Row], columns: Sequence[str], path: Path) -> None:
    """Write the rows of table experiments as CSV, unchanged.

    Args:
        rows: Rows of one experiment.
        columns: Columns in order.
        path: File to write; its folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows({name: row.get(name) for name in columns} for row in rows)


def write_plot(rows: Sequence[Row], k: int, path: Path) -> None:
    """Plot each uplift with its interval, the range over seeds and the paper's value.

    Args:
        rows: Rows of one experiment.
        k: Cutoff.
        path: PNG file to write; its folder is created.
    """
    mpl.use("Agg")
    path.parent.mkdir(parents=True, exist_ok=True)
    by_history = {history: _main(rows, k, history) for history in ("off", "on")}
    shown = {history: found for history, found in by_history.items() if found}
    n_lines = sum(len(found) for found in shown.values())
    first = rows[0]
    title = f"{first['experiment']}, {first['deployment']}, up to {first['ds']}"
    if not shown:
        empty = Figure(figsize=(8.5, 1.4), dpi=80)
        empty.suptitle(title, fontsize=10)
        empty.text(0.5, 0.4, "nothing to compare: fewer than two users, or a baseline that finds nothing", ha="center")
        empty.savefig(path)
        return
    figure = Figure(figsize=(8.5, 1.4 + 0.42 * n_lines), dpi=80, layout="constrained")
    ratios = [len(found) for found in shown.values()]
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    for axis, (history, found) in zip(axes, shown.items(), strict=True):
        _draw(axis, found, f"history features {history}")
    axes[-1].set_xlabel(f"uplift of NDCG@{k}, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)


def _draw(axis: Axes, found: Sequence[Row], title: str) -> None:
    for place, row in enumerate(found):
        middle, low, high = (100 * row[name] for name in ("uplift", "uplift_low", "uplift_high"))
        holds = row["verdict"].startswith("holds")
        color = ("tab:green" if middle > 0 else "tab:red") if holds else "tab:gray"
        error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        label = "mean of seeds, 95 % interval over users (gray: does not hold)" if place == 0 else None
        axis.errorbar(middle, place, xerr=error, fmt="o", color=color, capsize=3, label=label)
        seeds = [100 * row["uplift_seed_low"], 100 * row["uplift_seed_high"]]
        axis.plot(seeds, [place + 0.25] * 2, color="tab:blue", lw=3, alpha=0.4, label="seeds" if place == 0 else None)
    papers = [(100 * row["paper_uplift"], place) for place, row in enumerate(found) if row["paper_uplift"] is not None]
    if papers:
        axis.plot(*zip(*papers, strict=True), "kx", label="paper")
    axis.axvline(0, color="black", lw=0.8)
    is_sequence = found[0]["experiment"] == SEQUENCE
    names = [row["variant"] if is_sequence else f"{row['variant']}\nagainst {row['baseline']}" for row in found]
    axis.set_yticks(range(len(found)), names, fontsize=7)
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_title(title, fontsize=9, loc="left")
    axis.grid(axis="x", alpha=0.3)
