"""Variants and contrasts that the experiments compare (paper, sections 5.3 to 5.5 and 9.2), as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.config.window import LONG_DAYS, MAX_SEQUENCE, SHORT_DAYS

INTEGRATION, LEAKAGE, SEQUENCE, AUTOENCODER = "integration", "leakage", "sequence-length", "autoencoder"
LIVE = "live"
EXPERIMENT_NAMES = (INTEGRATION, LIVE, LEAKAGE, SEQUENCE, AUTOENCODER)
STRATEGIES = {"late_fusion": "late fusion", "feature_injection": "feature injection", "prefix_token": "prefix token"}

# Table 1: (strategy, method, lagged) to uplift.
PAPER_TABLE_1 = {
    ("late_fusion", "uniform", False): -0.0070,
    ("late_fusion", "recency", False): -0.0305,
    ("feature_injection", "uniform", True): 0.0045,
    ("feature_injection", "recency", True): 0.0042,
    ("prefix_token", "uniform", True): 0.0131,
    ("prefix_token", "recency", True): 0.0087,
}

PAPER_LEAKAGE = -0.005  # section 5.5: [365,0] against [365,60]
PAPER_AUTOENCODER = 0.021  # section 9.2: against uniform


@dataclass(frozen=True)
class ExampleSet:
    """How examples are built.

    Attributes:
        name: Name of the set.
        sequence_days: Length in days of the short window whose interactions make up the sequence.
        max_sequence: Largest number of interactions in a sequence.
        long_days: Number of past days for LTEs and history features; with 0 the past is empty.
    """

    name: str
    sequence_days: int
    max_sequence: int
    long_days: int


LTE_SET = ExampleSet("lte", SHORT_DAYS, MAX_SEQUENCE, LONG_DAYS)


def sequence_set(days: int) -> ExampleSet:
    """Set with sequences of ``days`` days and no past; the largest number of interactions grows with the days."""
    return ExampleSet(f"sequence-{days}", days, round(days * MAX_SEQUENCE / SHORT_DAYS), 0)


@dataclass(frozen=True)
class Variant:
    """One way to train the ranker.

    Attributes:
        lte: How the ranker reads the LTE: none, late_fusion, feature_injection or prefix_token.
        method: How the LTE is computed: uniform, recency or autoencoder.
        lagged: True for window [365,60], False for window [365,0].
        history: Whether the history features are on.
        objective: next_day or clm.
        examples: Examples for training and test.
        expert: Whether past items have an expert of their own.
        affinity: Whether the whitened inner product of LTE and item adds a logit.
        shuffled: Whether each user reads another user's LTE, in training and test: the negative control.
    """

    lte: str = "none"
    method: str = "uniform"
    lagged: bool = True
    history: bool = False
    objective: str = "next_day"
    examples: ExampleSet = LTE_SET
    expert: bool = False
    affinity: bool = False
    shuffled: bool = False

    @property
    def label(self) -> str:
        """Name of the variant in a table. History features have a separate column."""
        if self.examples is not LTE_SET and self.examples != LTE_SET:
            return f"{self.examples.sequence_days} days, {self.examples.max_sequence} interactions"
        window = "[365,60]" if self.lagged else "[365,0]"
        name = "no LTE" if self.lte == "none" else f"{STRATEGIES[self.lte]}, {self.method}, {window}"
        parts = {"affinity": self.affinity, "repeat expert": self.expert, "LTE of another user": self.shuffled}
        name = ", ".join([name, *(part for part, is_on in parts.items() if is_on)])
        return name if self.objective == "next_day" else f"{name}, causal training"


@dataclass(frozen=True)
class Contrast:
    """A variant, its baseline, and the uplift in the paper; None if the paper does not compare the two."""

    variant: Variant
    baseline: Variant
    paper: float | None = None


def contrasts(experiment: str, sequence_days: Sequence[int]) -> list[Contrast]:
    """All comparisons of an experiment, in the order of its table.

    Args:
        experiment: One of ``EXPERIMENT_NAMES``.
        sequence_days: Days of history that the sequence-length experiment compares; the first one is the baseline.
    """
    if experiment == INTEGRATION:
        return [contrast for history in (False, True) for contrast in _integration(history)]
    if experiment == LEAKAGE:
        return _leakage()
    if experiment == LIVE:
        return _live()
    if experiment == SEQUENCE:
        first, *longer = (Variant(examples=sequence_set(days)) for days in sequence_days)
        return [Contrast(variant, first) for variant in longer]
    return [contrast for history in (False, True) for contrast in _autoencoder(history)]


def _integration(history: bool) -> list[Contrast]:
    windows = {"late_fusion": (False, True), "feature_injection": (True,), "prefix_token": (True,)}
    return [
        Contrast(
            Variant(lte, method, lagged, history), Variant(history=history), PAPER_TABLE_1.get((lte, method, lagged))
        )
        for lte, both in windows.items()
        for lagged in both
        for method in ("uniform", "recency")
    ]


NO_LTE = Variant(history=True)
PREFIX = replace(NO_LTE, lte="prefix_token")
NO_LTE_EXPERT = replace(NO_LTE, expert=True)
LIVE_RANKER = replace(PREFIX, affinity=True, expert=True)


def _live() -> list[Contrast]:
    """What the LTE is worth in the ranker that goes live, and the same with an LTE that says nothing about the user."""
    control = replace(LIVE_RANKER, shuffled=True)
    return [
        Contrast(LIVE_RANKER, NO_LTE),
        Contrast(LIVE_RANKER, NO_LTE_EXPERT),
        Contrast(PREFIX, NO_LTE),
        Contrast(LIVE_RANKER, PREFIX),
        Contrast(control, NO_LTE_EXPERT),
    ]


def _leakage() -> list[Contrast]:
    found = []
    for objective, history in (("clm", False), ("next_day", False), ("next_day", True)):
        nothing = Variant(history=history, objective=objective)
        lagged = replace(nothing, lte="prefix_token")
        overlapping = replace(lagged, lagged=False)
        paper = PAPER_LEAKAGE if objective == "clm" else None
        found += [
            Contrast(overlapping, lagged, paper),
            Contrast(lagged, nothing, PAPER_TABLE_1["prefix_token", "uniform", True] if paper else None),
            Contrast(overlapping, nothing),
        ]
    return found


def _autoencoder(history: bool) -> list[Contrast]:
    nothing = Variant(history=history)
    uniform = replace(nothing, lte="prefix_token")
    learned = replace(uniform, method="autoencoder")
    return [
        Contrast(learned, uniform, PAPER_AUTOENCODER),
        Contrast(learned, replace(uniform, method="recency")),
        Contrast(learned, nothing),
    ]


def variants(experiments: Sequence[str], sequence_days: Sequence[int]) -> list[Variant]:
    """All variants that the experiments need, each once. Variants with the same examples are next to each other."""
    found = {
        variant: None
        for experiment in experiments
        for contrast in contrasts(experiment, sequence_days)
        for variant in (contrast.baseline, contrast.variant)
    }
    return sorted(found, key=lambda variant: (variant.examples.sequence_days, variant.examples.name, variant.objective))
