"""The sections of a deployment's TOML file that set the models: autoencoder, ranker and experiments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jobs.config.checks import (
    Count,
    EachOnce,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    Width,
    Window,
    expect,
    only,
    section,
)
from jobs.config.window import MAX_SEQUENCE

# lte_models.ranker.towers.LTE_MODES repeats these names, because a configuration must load without torch. A test
# compares the two lists.
LteMode = Literal["none", "late_fusion", "feature_injection", "prefix_token"]

# The baselines that evaluate_ranker measures, in the order of its table.
BASELINES = (
    "popularity_7d",
    "last_basket",
    "frequency_60d",
    "frequency_365d",
    "ease",
    "decayed_and_popular",
    "tifu_knn",
    "up_cf",
)

# Those that count and are not tuned: a ranker below one of them is never wanted.
SIMPLE_BASELINES = BASELINES[:5]
Baselines = Annotated[
    tuple[Annotated[str, only(BASELINES.__contains__, f"one of {', '.join(BASELINES)}")], ...],
    EachOnce,
    only(bool, "at least one baseline"),
]

Average = Annotated[str, only(("uniform", "recency").__contains__, "'uniform' or 'recency'")]


@section
class AutoencoderSection:
    """The autoencoder of the paper's section 9.

    Attributes:
        enabled: Whether the daily run trains it and writes its LTEs.
        window: LTE window whose histories it reads.
        max_items: Most frequent items that it knows: its first layer has 4D floats for each. Users of none of them get
            the uniform average.
        epochs: At most; training stops early on validation users.
        batch_size: Users per step.
        learning_rate: Of Adam.
        warm_share: Share of it after a warm start: yesterday's weights fit already, and LTEs should not jump.
        negatives_share: Share of the vocabulary that a step samples.
        power: Power factor of the log-uniform negatives.
        l2: Weight of the squares of all encoder weights.
        patience: Epochs without a better validation recall before training stops; the first ones of a cold start go up
            and down.
        n_workers: Processes that read histories; 0 reads in the training process.
        seed: Decides the result together with the data.
        objective: bce (the paper's), or multinomial: one softmax over all items.
        input: sum: the multi-hot history (the paper's); root: divided by the root of its number of items; tfidf: rare
            items weigh more, and the history has length 1.
        input_dropout: Share of the input that is dropped in training; 0 in the paper.
        temperature: Divides the logits z Eᵀ; 1 in the paper. The larger, the longer z becomes.
        has_offset: Whether each item's logit has a fixed offset, the log-odds of its share of users; not in the paper.
        whitened: Whether the decoder is the whitened basis; not in the paper.
    """

    enabled: bool = True
    window: Window = "365-60"
    max_items: Count = 50_000
    epochs: Count = 20
    batch_size: Count = 256
    learning_rate: Positive = 1e-3
    warm_share: PositiveShare = 0.1
    negatives_share: PositiveShare = 0.2
    power: NonNegative = 1.0
    l2: float = 1e-6
    patience: Count = 5
    n_workers: Natural = 0
    seed: int = 0
    objective: Literal["bce", "multinomial"] = "bce"
    input: Literal["sum", "root", "tfidf"] = "sum"
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    temperature: Positive = 1.0
    has_offset: bool = False
    whitened: bool = False


@section
class RankerSection:
    """The two-tower ranker of the paper's sections 3 to 5.

    Attributes:
        enabled: Whether the daily run builds examples, trains it and judges it.
        train_days: Anchor days that training examples come from.
        validation_days: Of these, the last ones, which decide when training stops.
        lte: none, late_fusion, feature_injection or prefix_token.
        method: LTE method: uniform or recency.
        lagged: Whether the LTE leaves out the short window: [365,60] or [365,0].
        history_features: Whether the user's own counts and recent popularity add learned logits.
        repeat_expert: Whether past items have an expert of their own; without history_features it has no effect.
        affinity: Whether the whitened inner product of LTE and item adds a logit; with lte = none it has no effect.
        objective: next_day: the items of the day after; clm: the next item of each position of the sequence.
        lte_layers: Layers of the LTE's projection, 1 or 2.
        lte_gelu: GELU in the projection; linear otherwise.
        lte_hidden: Width between two layers, 128 to 1024.
        dim: Width of both towers.
        max_length: Last interactions of the short window that the user tower reads, 100 at most.
        epochs: At most; the learning rate falls to 0 over all of them.
        patience: Epochs without a better validation value before training stops.
        batch_size: Examples per step.
        learning_rate: Of Adam in the first step.
        negatives_share: Share of the vocabulary that a step samples; 1 is the full softmax.
        logq: Whether sampled negatives are weighted to estimate the full softmax.
        n_workers: Processes that read examples; 0 reads in the training process.
        cutoff: k of the metrics at k.
        seed: Decides the result together with the data.
        gate_days: Days that the gate pools: a candidate of each, judged on the day after its training. On a first run
            one candidate, trained without these days, is judged on all of them.
        gate_min_users: Users on these days below which nothing is decided and what is live stays.
        gate_baselines: Baselines of which the best, as chosen on earlier days, must not be above the candidate.
            tifu_knn and up_cf are measured only where they are named here.
    """

    enabled: bool = True
    train_days: int = 365
    validation_days: Count = 7
    lte: LteMode = "prefix_token"
    method: Average = "uniform"
    lagged: bool = True
    history_features: bool = True
    repeat_expert: bool = True
    affinity: bool = True
    objective: Literal["next_day", "clm"] = "next_day"
    lte_layers: Annotated[int, Field(ge=1, le=2)] = 1
    lte_gelu: bool = False
    lte_hidden: Annotated[int, Field(ge=128, le=1024)] = 256
    dim: Width = 64
    max_length: Annotated[int, Field(ge=1, le=MAX_SEQUENCE)] = MAX_SEQUENCE
    epochs: Count = 3
    patience: Count = 2
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    negatives_share: PositiveShare = 0.005
    logq: bool = True
    n_workers: Natural = 0
    cutoff: Count = 500
    seed: int = 0
    gate_days: Count = 7
    gate_min_users: Annotated[int, Field(ge=2)] = 100
    gate_baselines: Baselines = SIMPLE_BASELINES

    def __post_init__(self) -> None:
        """Refuse to hold out all days, and features that a causal objective would see too early."""
        what = f"less than ranker.train_days = {self.train_days}"
        expect(self.validation_days < self.train_days, "ranker.validation_days", what, self.validation_days)
        is_causal = not (self.history_features and self.objective == "clm")
        what = "next_day, because ranker.history_features are as of the anchor"
        expect(is_causal, "ranker.objective", what, self.objective)


@section
class ExperimentSection:
    """How large the experiments are; a training takes a minute or two of one core (docs/results.md has the results).

    Attributes:
        seeds: One training of each variant per seed.
        test_days: Last days with interactions; nothing of them is trained on.
        validation_days: Days with interactions before them that no ranker is trained on.
        train_days: Days before those that training examples come from.
        stride_days: Of these, every n-th day with interactions is taken.
        max_examples: Training examples at most, chosen by a hash.
        max_test_examples: User-days of the test days at most, chosen by a hash.
        epochs: Of each training; the learning rate falls to 0 over all of them, and the last one is kept.
        dim: Width of the ranker's towers.
        content_dim: Leading directions of the basis that the models read; a basis that has no more is read whole.
        batch_size: Examples per step.
        learning_rate: Of Adam in the first step.
        negatives_share: Share of the vocabulary that a step samples; 1 is the full softmax.
        sequence_days: Days of history that sequence-length tries; the first is its baseline.
        powers: Power factors of the autoencoder's negatives that are tried.
        autoencoder_items: Most frequent items that the autoencoder knows; its first layer grows with them.
        autoencoder_epochs: Of each training of the autoencoder.
        offsets_days: Ages of the rankers that stability compares with fresh ones.
        stability_methods: LTE methods that stability compares: uniform, recency, autoencoder.
        history: Whether stability and attention train the live ranker (on), the paper's (off) or both.
        parallel: Trainings at the same time, one core each.
        budget_minutes: Time for one call; what is not done by then is left for the next one.
    """

    seeds: Annotated[tuple[int, ...], EachOnce] = (0, 1, 2)
    test_days: Count = 7
    validation_days: Count = 7
    train_days: Count = 365
    stride_days: Count = 1
    max_examples: Count = 20_000
    max_test_examples: Count = 3_000
    epochs: Count = 3
    dim: Width = 32
    content_dim: Count = 128
    batch_size: Count = 64
    learning_rate: Positive = 3e-3
    negatives_share: PositiveShare = 0.1
    sequence_days: Annotated[tuple[Count, ...], EachOnce] = (60, 120, 240, 360)
    powers: Annotated[tuple[Positive, ...], EachOnce] = (0.5, 0.75, 1.0, 1.5)
    autoencoder_items: Count = 8_000
    autoencoder_epochs: Count = 10
    offsets_days: Annotated[tuple[Count, ...], EachOnce] = (1, 5, 10, 30)
    stability_methods: Annotated[tuple[Literal["uniform", "recency", "autoencoder"], ...], EachOnce] = (
        "uniform",
        "recency",
        "autoencoder",
    )
    history: Annotated[tuple[Literal["off", "on"], ...], EachOnce] = ("off", "on")
    parallel: Count = 2
    budget_minutes: Positive = 25.0
