"""metrics.prom in the text format, every name documented."""

from __future__ import annotations

import re
from dataclasses import replace

from checkout import ROOT
from jobs.report.prometheus import MEANINGS, metrics_text
from jobs.report.summary import summarize
from report_facts import facts

# Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/
SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\\\|\\"|\\n)*",?)*)\} (-?\d+(\.\d+)?(e-?\d+)?)')


def test_each_line_has_the_form_of_the_text_format() -> None:
    report = replace(summarize(facts()), deployment='a "quoted" \\ name\n')
    lines = metrics_text(report).splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert len(samples) > 10
    assert all(SAMPLE.fullmatch(line) for line in samples)
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_values_by_hand() -> None:
    lines = metrics_text(summarize(facts())).splitlines()
    assert 'lte_live_users{deployment="shop"} 1234.0' in lines
    assert 'lte_gates{deployment="shop",result="held"} 1.0' in lines
    assert 'lte_gates{deployment="shop",result="skipped"} 1.0' in lines
    assert 'lte_task_seconds{deployment="shop",task="ingest"} 2.5' in lines
    assert 'lte_unknown_share{deployment="shop"} 0.25' in lines
    assert not any(line.startswith("lte_drift_p99") for line in lines)  # not measured, so absent and not 0


def test_every_name_is_in_the_operations_page() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in MEANINGS if f"`{name}`" not in page] == []
