"""Failures that keep back one method and not the day: nothing that is published reads the method.

The LTEs of the autoencoder are compared with yesterday's and with uniform ones. In a small shop a new encoder can fail
this on the first day. The published slice and the ranker read other methods, for the configuration refuses a learned
one there. So they need not wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from schemas import METHODS, POOLED_METHODS

if TYPE_CHECKING:  # `lte status` reads gates, too, and must not load Great Expectations
    from jobs.gates.checkpoints import GateOutcome

LEARNED_METHODS = tuple(method for method in METHODS if method not in POOLED_METHODS)
REMEDY = (
    "nothing published reads it, so the day goes on without it. If it is refused every day: train longer "
    "(autoencoder.epochs), set its limits in [gates] from the values in table metrics, or turn it off "
    "(autoencoder.enabled = false)"
)


def refusing(outcome: GateOutcome, label: str) -> GateOutcome:
    """Mark a failure of a learned method, which nothing published reads; other outcomes stay as they are.

    Args:
        outcome: Of one expectation.
        label: What was judged: method/window for LTEs.
    """
    method = label.split("/", maxsplit=1)[0]
    if outcome.success or method not in LEARNED_METHODS:
        return outcome
    return replace(outcome, refused_method=method)


def is_blocking(gate: Mapping[str, Any]) -> bool:
    """Whether a row of gate_results stops the day: it failed, and the failure does not only refuse a method.

    Args:
        gate: A row; an earlier version of this code wrote rows without ``refused_method``.
    """
    return not gate["success"] and gate.get("refused_method") is None


def refusal_text(outcome: GateOutcome) -> str:
    """What was refused, why and what can be done, in one line."""
    return (
        f"REFUSED: method {outcome.refused_method}: {outcome.expectation}: observed {outcome.observed}, "
        f"expected {outcome.expected}; {REMEDY}"
    )
