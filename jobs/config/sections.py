"""One TOML file a deployment, checked before anything runs, and the flags that every job shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from jobs.config.window import LONGEST_DAYS, LteWindow, _require

LOCAL_MASTER = re.compile(r"^(sail|local(\[(\*|\d+)(,\d+)?\])?|yarn|(spark|k8s|sc)://\S+)$")

# A copy of lte_models.ranker.towers.LTE_MODES: reading a configuration must not load torch. A test holds them equal.
LTE_MODES = ("none", "late_fusion", "feature_injection", "prefix_token")


@dataclass(frozen=True)
class DeploymentSection:
    """Who this deployment is."""

    name: str


@dataclass(frozen=True)
class PathsSection:
    """Where things are. Relative paths are relative to the folder of the configuration file."""

    landing: str
    lake: str
    reports: str
    data_docs: str
    online_store: str


@dataclass(frozen=True)
class EngineSection:
    """Which engine runs the jobs (DESIGN section 2).

    Attributes:
        master: ``sail`` (in this process, no Java), ``local[*]``, ``spark://…``, ``yarn``, ``k8s://…`` or ``sc://…``.
        maven_mirror: Repository for Delta's jars (https: or file:); empty for Maven Central.
        partitions: Shuffle partitions.
        conf: Further Spark settings, name to value.
    """

    master: str = "sail"
    maven_mirror: str = ""
    partitions: int = 4
    conf: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an unknown master or a partition count below one."""
        _require(
            LOCAL_MASTER.match(self.master) is not None,
            "engine.master",
            self.master,
            "use sail, local[N], spark://…, yarn, k8s://… or sc://…",
        )
        _require(self.partitions >= 1, "engine.partitions", self.partitions, "at least 1")


@dataclass(frozen=True)
class InteractionsSection:
    """What a landing row may hold."""

    types: tuple[str, ...] = ("click", "wishlist", "cart", "checkout", "purchase")
    earliest: date = date(2000, 1, 1)
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        """Refuse an empty list of types and a share outside [0, 1]."""
        _require(
            bool(self.types) and all(self.types) and len(set(self.types)) == len(self.types),
            "interactions.types",
            self.types,
            "at least one, each once, none empty",
        )
        _require(0 <= self.max_bad_share <= 1, "interactions.max_bad_share", self.max_bad_share, "between 0 and 1")


@dataclass(frozen=True)
class BasisSection:
    """The encoder of items (DESIGN section 4)."""

    encoder: str = "minilm"
    model: str = "ViT-B-32"
    weights: str = "laion2b_s34b_b79k"
    batch_size: int = 128

    def __post_init__(self) -> None:
        """Refuse an unknown encoder; there is no silent fall-back."""
        _require(self.encoder in ("minilm", "open_clip"), "basis.encoder", self.encoder, "use minilm or open_clip")
        _require(self.batch_size >= 1, "basis.batch_size", self.batch_size, "at least 1")


@dataclass(frozen=True)
class LteSection:
    """Which LTEs are computed (DESIGN section 5)."""

    windows: tuple[str, ...] = ("365-60",)
    methods: tuple[str, ...] = ("uniform", "recency")
    half_life_days: float = 90.0
    count: str = "each"

    def __post_init__(self) -> None:
        """Refuse impossible windows, methods, half-lives and ways to count."""
        _require(bool(self.windows), "lte.windows", self.windows, "at least one window")
        for text in self.windows:
            LteWindow.parse(text, "lte.windows")
        _require(len(set(self.windows)) == len(self.windows), "lte.windows", self.windows, "each once")
        _require(
            bool(self.methods)
            and set(self.methods) <= {"uniform", "recency"}
            and len(set(self.methods)) == len(self.methods),
            "lte.methods",
            self.methods,
            "uniform, recency or both",
        )
        _require(self.half_life_days > 0, "lte.half_life_days", self.half_life_days, "above 0")
        _require(self.count in ("each", "distinct"), "lte.count", self.count, "use each or distinct")


@dataclass(frozen=True)
class DriftSection:
    """Against which earlier days a run is compared."""

    offsets_days: tuple[int, ...] = (1, 5, 10)

    def __post_init__(self) -> None:
        """Refuse offsets that are no days, and none of one day: gates and `lte user` compare with yesterday."""
        _require(
            min(self.offsets_days, default=0) == 1
            and max(self.offsets_days) <= LONGEST_DAYS
            and len(set(self.offsets_days)) == len(self.offsets_days),
            "drift.offsets_days",
            self.offsets_days,
            f"whole days up to {LONGEST_DAYS}, each once, 1 among them",
        )


@dataclass(frozen=True)
class GatesSection:
    """Limits of the quality gate; a value outside them blocks publishing.

    Attributes:
        min_users: Fewest users in the LTE slice that is published.
        max_users_lost_share: Largest share of yesterday's users that may be missing today.
        max_users_change_share: Largest relative change of the number of users since yesterday.
        max_unknown_share: Largest share of interactions in the window whose item has no vector.
        min_cosine_p01: Lowest 1 % quantile of the cosine with yesterday's LTE, over users with 20 or more interactions.
        max_drift_p99: Highest 99 % quantile of the one-day drift, over users with 20 or more interactions.
        max_bound_violations: Users whose drift broke the bound that always holds; a violation is a bug or bad data.
        max_unembedded_share: Largest share of the catalogue without a vector.
        min_autoencoder_cosine_p01: Lowest 1 % quantile of the cosine of the autoencoder's LTE with yesterday's, over
            users with 20 or more items; the encoder is trained again each day, so no bound covers it.
        max_autoencoder_drift_p99: Highest 99 % quantile of its distance from yesterday's over the norm of yesterday's,
            over the same users.
        min_autoencoder_uniform_cosine_p50: Lowest median of its cosine with the same day's uniform LTE, both less their
            means over users (0.28 on the sample): near 0 where the two have nothing to do with each other.
    """

    min_users: int = 1
    max_users_lost_share: float = 0.05
    max_users_change_share: float = 0.2
    max_unknown_share: float = 0.2
    min_cosine_p01: float = 0.8
    max_drift_p99: float = 0.4
    max_bound_violations: int = 0
    max_unembedded_share: float = 0.5
    min_autoencoder_cosine_p01: float = 0.5
    max_autoencoder_drift_p99: float = 1.0
    min_autoencoder_uniform_cosine_p50: float = 0.1

    def __post_init__(self) -> None:
        """Refuse shares and cosines that cannot be."""
        for name in (
            "max_users_lost_share",
            "max_users_change_share",
            "max_unknown_share",
            "max_unembedded_share",
        ):
            _require(getattr(self, name) >= 0, f"gates.{name}", getattr(self, name), "0 or more")
        for name in ("min_cosine_p01", "min_autoencoder_cosine_p01", "min_autoencoder_uniform_cosine_p50"):
            _require(-1 <= getattr(self, name) <= 1, f"gates.{name}", getattr(self, name), "between -1 and 1")
        _require(0 <= self.max_drift_p99 <= 2, "gates.max_drift_p99", self.max_drift_p99, "between 0 and 2")
        _require(
            self.max_autoencoder_drift_p99 >= 0,
            "gates.max_autoencoder_drift_p99",
            self.max_autoencoder_drift_p99,
            "0 or more",
        )
        for name in ("min_users", "max_bound_violations"):
            _require(getattr(self, name) >= 0, f"gates.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class PublishSection:
    """The online store and the slice of user_lte that it serves (DESIGN section 9).

    Attributes:
        store: ``lmdb`` (a folder, see ``paths.online_store``) or ``redis``.
        method: Method of the slice.
        window: Window of the slice.
        redis_url: ``redis://host:port/db``, or ``rediss://`` for TLS; no credentials.
        redis_username: ACL user; empty for the default user.
        redis_password: Its password; ``LTE_PUBLISH__REDIS_PASSWORD`` keeps it out of files.
        redis_ca_file: PEM file of the authority that signed the server's certificate; empty for the system's.
        redis_cert_file: PEM file of this client's certificate, where the server asks for one.
        redis_key_file: PEM file of its key.
        redis_prefix: All keys start with it.
    """

    store: str = "lmdb"
    method: str = "uniform"
    window: str = "365-60"
    redis_url: str = "redis://localhost:6379/0"
    redis_username: str = ""
    redis_password: str = field(default="", repr=False)
    redis_ca_file: str = ""
    redis_cert_file: str = ""
    redis_key_file: str = ""
    redis_prefix: str = "lte"

    def __post_init__(self) -> None:
        """Refuse an unknown store and an impossible window."""
        _require(self.store in ("lmdb", "redis"), "publish.store", self.store, "use lmdb or redis")
        LteWindow.parse(self.window, "publish.window")


@dataclass(frozen=True)
class RetentionSection:
    """How far back tables can be read and restored."""

    rollback_days: int = 14

    def __post_init__(self) -> None:
        """Refuse a negative horizon."""
        _require(self.rollback_days >= 0, "retention.rollback_days", self.rollback_days, "0 or more")


@dataclass(frozen=True)
class AutoencoderSection:
    """The autoencoder of the paper's section 9 (DESIGN section 7).

    Attributes:
        enabled: Whether the daily run trains it and writes its LTEs.
        window: LTE window whose histories it reads.
        max_items: Most frequent items that it knows: its first layer has 4D floats for each. Users of none of them get
            the uniform average.
        epochs: At most; training stops early on held-out users.
        batch_size: Users a step.
        learning_rate: Of Adam.
        warm_share: Share of it after a warm start: yesterday's weights fit already, and LTEs should not jump.
        negatives_share: Share of the vocabulary that a step samples.
        power: Power factor of the log-uniform negatives.
        l2: Weight of the squares of all encoder weights.
        patience: Epochs without a better held-out recall before training stops; the first ones of a cold start go up
            and down.
        n_workers: Processes that read histories; 0 reads in the training process.
        seed: Decides the result together with the data.
    """

    enabled: bool = True
    window: str = "365-60"
    max_items: int = 50_000
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 1e-3
    warm_share: float = 0.1
    negatives_share: float = 0.2
    power: float = 1.0
    l2: float = 1e-6
    patience: int = 5
    n_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an impossible window or share."""
        LteWindow.parse(self.window, "autoencoder.window")
        _require(0 < self.negatives_share <= 1, "autoencoder.negatives_share", self.negatives_share, "in (0, 1]")
        for name in ("max_items", "epochs", "batch_size", "patience"):
            _require(getattr(self, name) >= 1, f"autoencoder.{name}", getattr(self, name), "at least 1")
        _require(self.learning_rate > 0, "autoencoder.learning_rate", self.learning_rate, "above 0")
        _require(0 < self.warm_share <= 1, "autoencoder.warm_share", self.warm_share, "in (0, 1]")
        _require(self.power >= 0, "autoencoder.power", self.power, "0 or more")
        _require(self.n_workers >= 0, "autoencoder.n_workers", self.n_workers, "0 or more")


@dataclass(frozen=True)
class RankerSection:
    """The two-tower ranker of the paper's sections 3 to 5 (DESIGN section 8).

    Attributes:
        enabled: Whether the daily run builds examples, trains it and judges it.
        train_days: Anchor days that training examples come from.
        held_out_days: Of these, the last ones that decide when training stops.
        lte: none, late_fusion, feature_injection or prefix_token.
        method: LTE method: uniform or recency.
        lagged: Whether the LTE leaves out the short window: [365,60] or [365,0].
        history_features: Whether the user's own counts and recent popularity add learned logits.
        objective: next_day: the items of the day after; clm: the next item of each position of the sequence.
        lte_layers: Layers of the LTE's projection, 1 or 2.
        lte_gelu: GELU in the projection; linear otherwise.
        lte_hidden: Width between two layers, 128 to 1024.
        dim: Width of both towers.
        max_length: Last interactions of the short window that the user tower reads, 100 at most.
        epochs: At most.
        patience: Epochs without a better held-out value before training stops.
        batch_size: Examples a step.
        learning_rate: Of Adam.
        negatives_share: Share of the vocabulary that a step samples; 1 is the full softmax.
        logq: Whether sampled negatives are weighted to estimate the full softmax.
        n_workers: Processes that read examples; 0 reads in the training process.
        cutoff: k of the metrics at k.
        seed: Decides the result together with the data.
    """

    enabled: bool = True
    train_days: int = 365
    held_out_days: int = 7
    lte: str = "prefix_token"
    method: str = "uniform"
    lagged: bool = True
    history_features: bool = True
    objective: str = "next_day"
    lte_layers: int = 1
    lte_gelu: bool = False
    lte_hidden: int = 256
    dim: int = 64
    max_length: int = 100
    epochs: int = 10
    patience: int = 2
    batch_size: int = 128
    learning_rate: float = 1e-3
    negatives_share: float = 0.005
    logq: bool = True
    n_workers: int = 0
    cutoff: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible days, shares and methods."""
        _require(0 < self.held_out_days < self.train_days, "ranker.held_out_days", self.held_out_days, "in train_days")
        _require(0 < self.negatives_share <= 1, "ranker.negatives_share", self.negatives_share, "in (0, 1]")
        _require(self.method in ("uniform", "recency"), "ranker.method", self.method, "use uniform or recency")
        _require(self.objective in ("next_day", "clm"), "ranker.objective", self.objective, "use next_day or clm")
        is_causal = not (self.history_features and self.objective == "clm")
        _require(is_causal, "ranker.objective", self.objective, "history_features are as of the anchor: use next_day")
        _require(self.lte in LTE_MODES, "ranker.lte", self.lte, f"use one of {', '.join(LTE_MODES)}")
        _require(self.lte_layers in (1, 2), "ranker.lte_layers", self.lte_layers, "1 or 2")
        _require(128 <= self.lte_hidden <= 1024, "ranker.lte_hidden", self.lte_hidden, "128 to 1024")
        _require(self.dim % 4 == 0 and self.dim > 0, "ranker.dim", self.dim, "a multiple of the 4 heads")
        for name in ("cutoff", "epochs", "patience", "batch_size"):
            _require(getattr(self, name) >= 1, f"ranker.{name}", getattr(self, name), "at least 1")
        _require(1 <= self.max_length <= 100, "ranker.max_length", self.max_length, "1 to 100")
        _require(self.n_workers >= 0, "ranker.n_workers", self.n_workers, "0 or more")
        _require(self.learning_rate > 0, "ranker.learning_rate", self.learning_rate, "above 0")


@dataclass(frozen=True)
class ExperimentSection:
    """How large the experiments are; each training must end within seconds (docs/results.md has what they found).

    Attributes:
        seeds: One training of each variant a seed.
        holdout_days: Last days with interactions; nothing of them is trained on.
        held_out_days: Days with interactions before them that decide which epoch is kept.
        train_days: Days before those that training examples come from.
        stride_days: Of these, every n-th day with interactions is taken.
        max_examples: Training examples at most, chosen by a hash.
        max_holdout: User-days of the holdout at most, chosen by a hash.
        epochs: Of each training; the best one on the held-out days is kept.
        dim: Width of the ranker's towers.
        content_dim: Leading directions of the basis that the models read; a basis that has no more is read whole.
        batch_size: Examples a step.
        learning_rate: Of Adam.
        negatives_share: Share of the vocabulary that a step samples; 1 is the full softmax.
        sequence_days: Days of history that sequence-length tries; the first is its baseline.
        powers: Power factors of the autoencoder's negatives that are tried.
        autoencoder_items: Most frequent items that the autoencoder knows; its first layer grows with them.
        autoencoder_epochs: Of each training of the autoencoder.
        parallel: Trainings at a time, one core each.
        budget_minutes: Time for one call; what is not done by then is left for the next one.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    holdout_days: int = 7
    held_out_days: int = 3
    train_days: int = 365
    stride_days: int = 7
    max_examples: int = 8_000
    max_holdout: int = 3_000
    epochs: int = 4
    dim: int = 32
    content_dim: int = 128
    batch_size: int = 32
    learning_rate: float = 3e-3
    negatives_share: float = 0.1
    sequence_days: tuple[int, ...] = (60, 120, 240, 360)
    powers: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5)
    autoencoder_items: int = 8_000
    autoencoder_epochs: int = 10
    parallel: int = 2
    budget_minutes: float = 25.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be, and repeated seeds."""
        whole = ("holdout_days", "held_out_days", "train_days", "stride_days", "max_examples", "max_holdout", "epochs")
        sizes = ("dim", "content_dim", "batch_size", "autoencoder_items", "autoencoder_epochs", "parallel")
        for name in (*whole, *sizes):
            _require(getattr(self, name) >= 1, f"experiment.{name}", getattr(self, name), "at least 1")
        for name in ("seeds", "sequence_days", "powers"):
            values = getattr(self, name)
            is_good = bool(values) and len(set(values)) == len(values)
            _require(is_good, f"experiment.{name}", values, "at least one, each once")
        _require(self.dim % 4 == 0, "experiment.dim", self.dim, "a multiple of the 4 heads")
        _require(min(self.sequence_days) >= 1, "experiment.sequence_days", self.sequence_days, "at least 1")
        _require(min(self.powers) > 0, "experiment.powers", self.powers, "above 0")
        _require(0 < self.negatives_share <= 1, "experiment.negatives_share", self.negatives_share, "in (0, 1]")
        _require(self.learning_rate > 0, "experiment.learning_rate", self.learning_rate, "above 0")
        _require(self.budget_minutes > 0, "experiment.budget_minutes", self.budget_minutes, "above 0")


@dataclass(frozen=True)
class TrackingSection:
    """MLflow, where each training leaves its curves, parameters and manifest.

    Attributes:
        uri: Of MLflow: a server, a database, ``local`` for SQLite under ``models`` in the lake, or empty for none.
        experiment: Name of the experiment; empty for the deployment's name.
    """

    uri: str = "local"
    experiment: str = ""


@dataclass(frozen=True)
class Deployment:
    """Everything that a deployment sets; see ``configs/complete_journey.toml`` for one with comments."""

    deployment: DeploymentSection
    paths: PathsSection
    engine: EngineSection = field(default_factory=EngineSection)
    interactions: InteractionsSection = field(default_factory=InteractionsSection)
    basis: BasisSection = field(default_factory=BasisSection)
    lte: LteSection = field(default_factory=LteSection)
    drift: DriftSection = field(default_factory=DriftSection)
    gates: GatesSection = field(default_factory=GatesSection)
    publish: PublishSection = field(default_factory=PublishSection)
    retention: RetentionSection = field(default_factory=RetentionSection)
    autoencoder: AutoencoderSection = field(default_factory=AutoencoderSection)
    ranker: RankerSection = field(default_factory=RankerSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)
    experiment: ExperimentSection = field(default_factory=ExperimentSection)

    def __post_init__(self) -> None:
        """Refuse to publish a slice that no job computes, and models that read other LTEs than there are."""
        methods, windows = list(self.lte.methods), list(self.lte.windows)
        is_computed = self.publish.method in methods
        _require(is_computed, "publish.method", self.publish.method, f"not among lte.methods {methods}")
        is_computed = self.publish.window in windows
        _require(is_computed, "publish.window", self.publish.window, f"not among lte.windows {windows}")
        if self.autoencoder.enabled:
            self._require_average(methods, windows)
        if self.ranker.enabled and self.ranker.lte != "none":
            self._require_served()

    def _require_average(self, methods: list[str], windows: list[str]) -> None:
        """The autoencoder's LTEs are compared with uniform ones, which also stand in for it."""
        hint = "or set autoencoder.enabled = false"
        _require("uniform" in methods, "lte.methods", methods, f"the autoencoder needs uniform; add it, {hint}")
        window = self.autoencoder.window
        _require(
            window in windows, "autoencoder.window", window, f"not among lte.windows {windows}; change one, {hint}"
        )

    def _require_served(self) -> None:
        """A ranker must be served the LTEs that it was trained with."""
        hint = "change one, or set ranker.enabled = false"
        text = f"a ranker with ranker.lte = {self.ranker.lte!r} is trained on LTEs that count each interaction; {hint}"
        _require(self.lte.count == "each", "lte.count", self.lte.count, text)
        served, window = (self.publish.method, self.publish.window), "365-60" if self.ranker.lagged else "365-0"
        _require(
            self.ranker.method == served[0], "ranker.method", self.ranker.method, f"publish.method differs; {hint}"
        )
        text = f"the ranker reads LTEs of window {window}, publish.window is {served[1]}; {hint}"
        _require(window == served[1], "ranker.lagged", self.ranker.lagged, text)
