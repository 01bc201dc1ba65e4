"""Runs Great Expectations checkpoints over prepared rows, turns results into gate rows, writes a run's Data Docs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from pyspark.sql import DataFrame

from jobs.gates.suites import Expectation  # first: turns off the usage reports of Great Expectations  # isort: skip
from jobs.gates.addresses import expectation_name, gates_name, page_address
from jobs.gates.data_docs import make_readable
from jobs.gates.measured import Measured
from schemas import Table

import great_expectations as gx  # isort: skip


SAMPLE_ROWS = 10
SAMPLE_CHARACTERS = 4000
VALUE_CHARACTERS = 200
SITE = "run"

# Success or failure alone needs one pass over a table. Rows are read only when an expectation failed.
FAST = "BOOLEAN_ONLY"

WITH_ROWS = {
    "result_format": "SUMMARY",
    "include_unexpected_rows": True,
    "partial_unexpected_count": SAMPLE_ROWS,
    "return_unexpected_index_query": False,
}


@dataclass(frozen=True)
class GateOutcome:
    """Result of one expectation: a row of gate_results, without ds."""

    table: str
    expectation: str
    success: bool
    observed: str
    expected: str
    n_unexpected: int | None = None
    sample: str | None = None
    skipped: str | None = None
    refused_method: str | None = None


class GateRun:
    """All validations of one run; they share the Data Docs."""

    def __init__(self, ds: date) -> None:
        """Start with no results."""
        self._ds = ds
        self._pages: dict[str, dict[str, object]] = {}
        # The time of the run is the data day, not the clock, so a rerun has the same addresses.
        self._run_id = gx.RunIdentifier(run_name=f"ds={ds}", run_time=datetime(ds.year, ds.month, ds.day, tzinfo=UTC))
        self._context = gx.get_context(mode="ephemeral")
        quiet: Any = {"globally": False, "metric_calculations": False}
        self._context.variables.progress_bars = quiet
        self._lake = self._context.data_sources.add_spark("lake", persist=False)
        self._gates = self._context.data_sources.add_pandas("gates")

    def rows(
        self, table: Table, rows: DataFrame, suite: Sequence[Expectation], *, shows_rows: bool = True
    ) -> list[GateOutcome]:
        """Validate the rows of a table.

        Args:
            table: Declaration of the table.
            rows: Scalars of the table's rows.
            suite: Expectations that the rows must meet.
            shows_rows: Whether to look for rows that break a failed expectation.
        """
        definition = self._definition(self._lake, table.name, suite)
        results = self._run(definition, rows, FAST)
        if shows_rows and not all(result.success for result in results):
            # The same validation runs again, with rows. Its result replaces the result without rows.
            results = self._run(definition, rows, WITH_ROWS)
        return [_outcome(table.name, "", result) for result in results]

    def measured(self, measured: Measured) -> list[GateOutcome]:
        """Validate measured values; a value with nothing to compare with is skipped, and its outcome says why."""
        name = gates_name(measured.table, measured.label)
        limits = [limit for limit in measured.limits if limit.column not in measured.skipped]
        outcomes = [_skipped(measured, limit.column) for limit in measured.limits if limit.column in measured.skipped]
        if limits:
            frame = pd.DataFrame([{limit.column: _number(measured.values[limit.column]) for limit in limits}])
            definition = self._definition(self._gates, name, [limit.expectation() for limit in limits])
            for result in self._run(definition, frame, WITH_ROWS):
                outcome = _outcome(measured.table, measured.label, result)
                outcomes.append(outcome if outcome.success else _with_rows(outcome, result, measured.rows))
        return outcomes

    def write_docs(self, folder: Path) -> Path:
        """Write the site of this run, in the place of an earlier site of the same ds; needs no network.

        Returns:
            The index.html of the site.

        Raises:
            RuntimeError: Pages are missing. Great Expectations only logs the reason and continues.
        """
        shutil.rmtree(folder, ignore_errors=True)
        site: Any = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        }
        self._context.add_data_docs_site(SITE, site)
        self._context.build_data_docs(site_names=[SITE])
        missing = [page["page"] for page in self._pages.values() if not (folder / str(page["page"])).exists()]
        if missing:
            raise RuntimeError(f"Data Docs {folder}: {missing} were not written; the log above says why")
        pages = [page | {"page": quote(str(page["page"]))} for page in self._pages.values()]
        make_readable(folder, pages, f"Data Docs, ds={self._ds}")
        return folder / "index.html"

    def _definition(self, source: Any, name: str, suite: Sequence[Expectation]) -> Any:
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("run")
        added = self._context.suites.add(gx.ExpectationSuite(name, expectations=list(suite)))
        return self._context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=added))

    def _run(self, definition: Any, frame: Any, result_format: Any) -> list[Any]:
        kind = "fast" if result_format == FAST else "rows"
        checkpoint = gx.Checkpoint(
            name=f"{definition.name} {kind}", validation_definitions=[definition], result_format=result_format
        )
        self._context.checkpoints.add(checkpoint)
        done = checkpoint.run(batch_parameters={"dataframe": frame}, run_id=self._run_id)
        results = [result for found in done.run_results.values() for result in found.results]
        address = page_address(definition.name, definition.data.data_asset.datasource.name, self._ds)
        n_failed = sum(not result.success for result in results)
        self._pages[definition.name] = {
            "name": definition.name,
            "page": address,
            "n": len(results),
            "n_failed": n_failed,
        }
        return results


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _skipped(measured: Measured, column: str) -> GateOutcome:
    limit = next(limit for limit in measured.limits if limit.column == column)
    configuration = limit.expectation().configuration
    why = measured.skipped[column]
    name = _named(configuration.type, configuration.kwargs, measured.label)
    return GateOutcome(measured.table, name, True, f"skipped: {why}", _expected(configuration), skipped=why)


def _named(kind: str, kwargs: Mapping[str, Any], label: str) -> str:
    columns = kwargs.get("column") or ", ".join(kwargs.get("column_list", []))
    return expectation_name(kind, columns, label)


def _outcome(table: str, label: str, result: Any) -> GateOutcome:
    configuration, found = result.expectation_config, result.result or {}
    raised = _raised(result.exception_info or {})
    sample = found.get("unexpected_rows") or found.get("partial_unexpected_list")
    return GateOutcome(
        table=table,
        expectation=_named(configuration.type, configuration.kwargs, label),
        success=bool(result.success),
        observed=raised or _observed(found, result.success),
        expected=_expected(configuration),
        n_unexpected=found.get("unexpected_count"),
        sample=_sample(sample) if sample is not None and not result.success else None,
    )


def _raised(info: Mapping[str, Any]) -> str | None:
    """Message of an expectation that could not be evaluated, for example because a column is missing."""
    each = [info, *(value for value in info.values() if isinstance(value, Mapping))]
    return next((str(one["exception_message"]) for one in each if one.get("raised_exception")), None)


def _observed(found: Mapping[str, Any], success: bool) -> str:
    if "observed_value" in found:
        value = found["observed_value"]
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if "unexpected_count" in found:
        return f"{found['unexpected_count']} of {found.get('element_count', '?')} rows do not fit"
    return "as expected" if success else "not as expected"


def _expected(configuration: Any) -> str:
    kwargs = configuration.kwargs
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    parts = {
        "at least": low,
        "at most": high,
        "one of": kwargs.get("value_set"),
        "type": kwargs.get("type_"),
        "columns": kwargs.get("column_set"),
    }
    text = ", ".join(f"{word} {value}" for word, value in parts.items() if value is not None)
    words = {"expect_column_values_to_not_be_null": "no null", "expect_column_values_to_be_unique": "each once"}
    text = text or words.get(configuration.type, "each combination once")
    notes = configuration.notes
    return f"{text} ({notes})" if notes else text


def _with_rows(outcome: GateOutcome, result: Any, rows: Mapping[str, Callable[[], DataFrame]]) -> GateOutcome:
    read = rows.get(result.expectation_config.kwargs["column"])
    if read is None:
        return outcome
    found = [row.asDict() for row in read().limit(SAMPLE_ROWS).collect()]
    return GateOutcome(**{**vars(outcome), "sample": _sample(found)})


def _sample(rows: Sequence[Any]) -> str:
    """Rows as JSON. Long rows are dropped from the end instead of cut, so the text stays valid JSON."""
    kept = [_plain(row) for row in rows[:SAMPLE_ROWS]]
    while len(text := json.dumps(kept)) > SAMPLE_CHARACTERS and len(kept) > 1:
        kept.pop()
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)[:VALUE_CHARACTERS]
