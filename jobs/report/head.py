"""The answers at the top of the page, from the tables: published? healthy? is the ranker better? does the LTE help?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.gates.refusals import is_blocking
from jobs.report.facts import Facts, Row
from jobs.report.history import CANDIDATE, best_baseline, headline, ndcg_of_models


@dataclass(frozen=True)
class Answer:
    """One question with its answer; ``tone`` is "good", "bad" or "neutral", the colour beside the words."""

    question: str
    text: str
    tone: str


def answers(facts: Facts) -> list[Answer]:
    """The first questions of a reader, with answers."""
    measured = facts.of_job("evaluate_ranker")
    return [_published(facts), _gates(facts), _ranker(measured), _lte(facts.lte_uplift)]


def _published(facts: Facts) -> Answer:
    question = "Is this day live?"
    if facts.live_problem:
        return Answer(question, "Not known: the online store does not answer", "bad")
    if facts.live is None:
        return Answer(question, "No: nothing was ever published", "bad")
    if facts.live["ds"] != str(facts.ds):
        return Answer(question, f"No: {facts.live['ds']} is live", "neutral")
    return Answer(question, f"Yes, for {facts.live['row_count']:,} users", "good")


def _gates(facts: Facts) -> Answer:
    question, failed = "Are the data healthy?", sum(is_blocking(gate) for gate in facts.gates)
    refused = sorted({gate["refused_method"] for gate in facts.gates if gate.get("refused_method")})
    if not facts.gates:
        return Answer(question, "Not judged: validate left nothing", "neutral")
    if failed:
        return Answer(question, f"No: {failed} of {len(facts.gates)} expectations failed", "bad")
    if refused:
        return Answer(
            question, f"Yes, but method {', '.join(refused)} is refused; nothing published reads it", "neutral"
        )
    n_skipped = sum(gate["skipped"] is not None for gate in facts.gates)
    skipped = f"; {n_skipped} had nothing to judge" if n_skipped else ""
    return Answer(
        question, f"Yes: {len(facts.gates) - n_skipped} of {len(facts.gates)} expectations held{skipped}", "good"
    )


def _ranker(measured: Mapping[tuple[str, str], float]) -> Answer:
    """Compare with the best baseline; the result is certain if the 95 % interval of the uplift does not hold 0."""
    question = "Does the ranker beat the best baseline?"
    values = ndcg_of_models(measured)
    best = best_baseline(values)
    if CANDIDATE not in values or not best:
        return Answer(question, "Not judged: no ranker was measured on this day", "neutral")
    ours, theirs = values[CANDIDATE], values[best]
    is_better = ours > theirs
    against = f"{headline(measured)} {ours:.4f} against {theirs:.4f} of {best}"
    share = f", {ours / theirs - 1:+.1%}" if theirs else ""
    certainty = _certainty(measured, f"{CANDIDATE} over {best}")
    text = f"{'Yes' if is_better else 'No'}: {against}{share}{certainty}"
    return Answer(question, text, "good" if is_better and "not certain" not in certainty else "neutral")


def _certainty(measured: Mapping[tuple[str, str], float], label: str) -> str:
    low, high = (measured.get((f"uplift_{end}", label)) for end in ("low", "high"))
    if low is None or high is None:
        return ", not certain: no interval was measured"
    is_certain = low > 0 or high < 0
    return f", {'certain' if is_certain else 'not certain'}: 95 % interval {low:+.1%} to {high:+.1%}"


def _lte(found: Row | None) -> Answer:
    """Whether the LTE helps the ranker: the daily run trains no ranker without it, so an experiment has to answer."""
    question = "Does the LTE help?"
    if found is None or found["uplift"] is None:
        return Answer(question, "Not measured: lte experiment integration measures it", "neutral")
    low, high = found["uplift_low"], found["uplift_high"]
    is_certain = low > 0 or high < 0
    word = ("Yes" if low > 0 else "No") if is_certain else "Not certain"
    against = f"{found['metric']} {found['uplift']:+.1%} over no LTE, 95 % interval {low:+.1%} to {high:+.1%}"
    text = f"{word}: {against}, experiment of {found['ds']}"
    return Answer(question, text, "good" if word == "Yes" else "bad" if word == "No" else "neutral")
