"""docs/operations.md says of every gate what to do."""

from __future__ import annotations

import ast

from checkout import ROOT
from jobs.gates.measured import SETTINGS


def test_every_measure_with_a_limit_is_in_the_table_of_incidents() -> None:
    calls = [
        node
        for path in (ROOT / "jobs" / "gates").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Limit"
    ]
    firsts = [call.args[0] for call in calls]
    fixed = [first.value for first in firsts if isinstance(first, ast.Constant) and isinstance(first.value, str)]
    names = [*fixed, *SETTINGS]  # limits that the configuration sets
    assert len(names) >= 18
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in page] == []
