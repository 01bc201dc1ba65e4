"""Names of validations and the addresses of their pages in the Data Docs."""

from __future__ import annotations

from datetime import date

# Only measured values use these two expectations; the validation of rows uses neither.
LIMIT_KINDS = ("expect_column_max_to_be_between", "expect_column_min_to_be_between")


def expectation_name(kind: str, columns: str, label: str) -> str:
    """Name of an expectation: its kind and its columns. For measured values the label says what was measured."""
    return f"{kind}({columns})" + (f" of {label}" if label else "")


def gates_name(table: str, label: str) -> str:
    """Name of the validation of measured values. It contains no slash, because it is a file name."""
    return "-".join([table, *label.split("/"), "gates"] if label else [table, "gates"])


def docs_page(table: str, expectation: str, ds: date) -> str:
    """Page of an expectation, relative to the folder of the Data Docs.

    Args:
        table: Table.
        expectation: See :func:`expectation_name`.
        ds: Data day.
    """
    kind, _, rest = expectation.partition("(")
    name, source = table, "lake"
    if kind in LIMIT_KINDS:
        name, source = gates_name(table, rest.partition(") of ")[2]), "gates"
    return page_address(name, source, ds)


def page_address(name: str, source: str, ds: date) -> str:
    """Address at which Great Expectations puts the page of a validation, relative to the folder of the Data Docs."""
    return f"validations/{name}/ds={ds}/{ds:%Y%m%d}T000000.000000Z/{source}-{name}.html"
