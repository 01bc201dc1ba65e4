"""Print the results of `lte experiment` on several data sets side by side, as Markdown (docs/results.md).

    python scripts/results_tables.py "Online Retail II=data/online_retail_ii/reports/experiments/online_retail_ii" ...

Each argument is a title and a folder with the CSV files that an experiment wrote. Bold: the result
holds, see ``verdict`` in docs/reference/tables.md.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jobs.experiments.plan import EXPERIMENT_NAMES, INTEGRATION, SEQUENCE

METRIC = "ndcg_at_500"

Row = Mapping[str, str]
Tables = Mapping[str, Sequence[Row]]


def read(folders: Mapping[str, Path], name: str) -> Tables:
    """Rows of one experiment by title; data sets without it are left out."""
    files = {title: folder / f"{name}.csv" for title, folder in folders.items()}
    return {title: list(csv.DictReader(file.open())) for title, file in files.items() if file.exists()}


def is_whole(row: Row) -> bool:
    """Whether a row has the main metric over all test days."""
    return (row["metric"], row["targets"], row["short_history"]) == (METRIC, "all", "all")


def percent(value: str) -> str:
    """A share in percent with its sign."""
    return f"{100 * float(value):+.1f}"


def uplift(row: Row) -> str:
    """Uplift in percent, 95 % interval, p, and the number of seed-days with the same sign."""
    p = "p < 1e-9" if float(row["p"]) < 1e-9 else f"p = {float(row['p']):.1g}"
    value = f"**{percent(row['uplift'])}**" if row["verdict"].startswith("holds") else percent(row["uplift"])
    interval = f"[{percent(row['uplift_low'])}, {percent(row['uplift_high'])}]"
    return f"{value} {interval}, {p}, {row['n_same_sign']}/{row['n_seed_days']}"


def level(row: Row) -> str:
    """The metric, with smallest and largest value if there are several seeds."""
    spread = f" ({float(row['seed_low']):.4f} to {float(row['seed_high']):.4f})" if int(row["n_seeds"]) > 1 else ""
    return f"{float(row['value']):.4f}{spread}"


def side_by_side(
    tables: Tables, wanted: Callable[[Row], bool], label: Callable[[Row], str], cell: Callable[[Row], str]
) -> Iterable[str]:
    """One line per label, one column per data set; first a column of the paper, if a row has the paper's number."""
    cells: dict[str, dict[str, str]] = {}
    for title, rows in tables.items():
        for row in filter(wanted, rows):
            line = cells.setdefault(label(row), {})
            line[title] = cell(row)
            if row["paper_uplift"]:
                line["paper"] = f"{100 * float(row['paper_uplift']):+.2f}"
    titles = [*(["paper"] if any("paper" in line for line in cells.values()) else []), *tables]
    yield "| | " + " | ".join(titles) + " |"
    yield "|---" * (len(titles) + 1) + "|"
    for name, line in cells.items():
        yield f"| {name} | " + " | ".join(line.get(title, "") for title in titles) + " |"


def contrast_tables(tables: Tables) -> Iterable[str]:
    """Uplifts without and with history features, if the experiment has them."""
    for history, words in (("off", "History features off (the paper's model)"), ("on", "History features on")):

        def wanted(row: Row, history: str = history) -> bool:
            return bool(row["baseline"]) and row["history"] == history and is_whole(row)

        if any(wanted(row) for rows in tables.values() for row in rows):
            yield f"\n{words}:\n"
            yield from side_by_side(tables, wanted, lambda row: f"{row['variant']}, over {row['baseline']}", uplift)


def level_table(tables: Tables) -> Iterable[str]:
    """NDCG of every model and baseline."""
    yield f"\n{METRIC} (smallest to largest over seeds):\n"
    history = {"off": "", "on": ", history", "none": ""}
    yield from side_by_side(
        tables,
        lambda row: not row["baseline"] and is_whole(row),
        lambda row: row["variant"] + history[row["history"]],
        level,
    )


def seconds_table(tables: Tables) -> Iterable[str]:
    """Seconds of a training, mean over seeds, and of building its examples."""
    yield "\nseconds:\n"
    yield from side_by_side(
        tables,
        lambda row: row["metric"] in ("train_seconds", "prepare_seconds"),
        lambda row: f"{row['variant']}: {row['metric'].removesuffix('_seconds')}",
        lambda row: f"{float(row['value']):.1f}",
    )


def main(arguments: Sequence[str]) -> None:
    """Print all tables."""
    folders = {title: Path(folder) for title, folder in (argument.split("=", 1) for argument in arguments)}
    for name in EXPERIMENT_NAMES:
        tables = read(folders, name)
        print(f"\n## {name}")
        print("\n".join(contrast_tables(tables)))
        if name == INTEGRATION:
            print("\n".join(level_table(tables)))
        if name == SEQUENCE:
            print("\n".join(seconds_table(tables)))


if __name__ == "__main__":
    main(sys.argv[1:])
