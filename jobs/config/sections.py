"""The sections of a deployment's TOML file: each setting with its kind, its bounds and its default."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from jobs.config.addresses import is_url
from jobs.config.checks import (
    Cosine,
    Count,
    EachOnce,
    Natural,
    NonNegative,
    Positive,
    Share,
    Window,
    expect,
    only,
    section,
)
from jobs.config.models import AutoencoderSection, ExperimentSection, RankerSection
from jobs.config.window import LONGEST_DAYS, ConfigError, ranker_window

MASTER = re.compile(r"sail|local(\[(\*|\d+)(,\d+)?\])?|yarn|(spark|k8s|sc)://\S+")

# Characters of a path that the Delta library cannot read (measured with deltalake 1.6): it panics, looks into another
# folder, or finds no history ("#"). With "?" the database of MLflow does not open.
UNREADABLE_PATH = re.compile(r"[\[\]|^\\?#\x00-\x1f\x7f]|%[0-9A-Fa-f]{2}")
UNREADABLE = (
    r"a folder without [ ] | ^ \ ? # and % before two hex digits in its path, which Delta cannot read; rename it"
)

# A message names no user, but its webhook is a secret: it goes over TLS, or stays on this machine.
WEBHOOK = re.compile(r"https://[^\s/]+|http://(localhost|127\.0\.0\.1|\[::1\])([:/]|$)")


LteMethod = Annotated[
    str, only(("uniform", "recency", "behaviour").__contains__, "'uniform', 'recency' or 'behaviour'")
]

Offsets = Annotated[
    tuple[Count, ...],
    EachOnce,
    only(
        lambda days: 1 in days and max(days) <= LONGEST_DAYS,
        f"days up to {LONGEST_DAYS}, 1 among them, because the gates and `lte user` compare with yesterday",
    ),
]

# The smallest amount that a reader of landing files holds at once: the longest line.
MIB = 1 << 20

# Model and weights of open_clip if the configuration names no others.
CLIP_MODEL, CLIP_WEIGHTS = "ViT-B-32", "laion2b_s34b_b79k"


def _is_readable(lake: str) -> bool:
    return is_url(lake) or not UNREADABLE_PATH.search(lake)


def _conf_texts(conf: Any) -> Any:
    """Numbers and booleans as Spark writes them."""
    if not isinstance(conf, Mapping):
        return conf
    return {name: str(value).lower() if isinstance(value, int | float) else value for name, value in conf.items()}


@section
class DeploymentSection:
    """Who this deployment is."""

    name: str


@section
class PathsSection:
    """Where things are. Relative paths are relative to the folder of the configuration file."""

    landing: str
    lake: Annotated[str, only(_is_readable, UNREADABLE)]
    reports: str
    data_docs: str
    online_store: str


@section
class EngineSection:
    """Which engine runs the jobs.

    Attributes:
        master: ``sail`` (in this process, no Java), ``local[*]``, ``spark://…``, ``yarn``, ``k8s://…`` or ``sc://…``.
        maven_mirror: Repository for Delta's jars (https: or file:); empty for Maven Central.
        partitions: Shuffle partitions.
        conf: Further Spark settings, name to value; names with dots stand in quotes.
    """

    master: Annotated[str, only(MASTER.fullmatch, "sail, local[N], spark://…, yarn, k8s://… or sc://…")] = "sail"
    maven_mirror: str = ""
    partitions: Count = 4
    conf: Annotated[Mapping[str, str], BeforeValidator(_conf_texts)] = field(default_factory=dict)


@section
class InteractionsSection:
    """What a landing row may hold.

    Attributes:
        types: Kinds of interactions; a row of another kind is bad.
        earliest: First day of an event; an earlier row is bad.
        max_bad_share: Largest share of bad rows with which a day is still ingested.
    """

    types: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], EachOnce] = (
        "click",
        "wishlist",
        "cart",
        "checkout",
        "purchase",
    )
    earliest: date = date(2000, 1, 1)
    max_bad_share: Share = 0.01


@section
class LandingSection:
    """How much memory landing files may take: a file of a few kilobytes can become gigabytes when it is decoded.

    Attributes:
        max_file_bytes: Bytes that a compressed file may become, at most; a larger one is refused whole.
        max_batch_bytes: Decoded bytes of rows that a worker holds at once; a Parquet page of which a single one is
            larger, and more than four times its size in the file, is refused with its file.
        max_picture_batch_bytes: Bytes of decoded pictures that a worker holds at once; a larger picture is not used.
    """

    max_file_bytes: Annotated[int, Field(ge=MIB)] = 8 << 30
    max_batch_bytes: Annotated[int, Field(ge=MIB)] = 64 << 20
    max_picture_batch_bytes: Annotated[int, Field(ge=MIB)] = 256 << 20


@section
class BasisSection:
    """The encoder of items.

    Attributes:
        encoder: ``minilm`` reads texts and has weights of its own; ``open_clip`` reads texts and pictures.
        model: Architecture of open_clip (``ViT-B-32`` unless set). A checkpoint folder names its own.
        weights: Checkpoint folder, safetensors file or pretrained tag (``laion2b_s34b_b79k`` unless set) of open_clip.
            A path begins with ``/`` or with ``.``: relative to the configuration file.
        batch_size: Items per batch.
    """

    encoder: Literal["minilm", "open_clip"] = "minilm"
    model: str = ""
    weights: str = ""
    batch_size: Count = 128

    def __post_init__(self) -> None:
        """Refuse a model or weights that would be ignored, and a model that open_clip does not know."""
        if self.encoder == "minilm":
            what = "nothing, because minilm has its own; remove the setting or set basis.encoder = 'open_clip'"
            expect(not self.weights, "basis.weights", what, self.weights)
            expect(not self.model, "basis.model", what, self.model)
        elif self._is_folder():
            what = "nothing, because the folder basis.weights names its own model; remove basis.model"
            expect(not self.model, "basis.model", what, self.model)
        else:
            object.__setattr__(self, "model", self.model or CLIP_MODEL)
            object.__setattr__(self, "weights", self.weights or CLIP_WEIGHTS)
            names = clip_models()
            expect(self.model in names, "basis.model", f"one of {', '.join(names)}", self.model)

    def _is_folder(self) -> bool:
        is_path = self.weights.startswith(("/", "."))
        return is_path and not self.weights.endswith(".safetensors")


def clip_models() -> list[str]:
    """The models that open_clip knows: the files of its architectures, read without importing open_clip and torch."""
    package = importlib.util.find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    return sorted(file.stem for folder in folders or () for file in Path(folder, "model_configs").glob("*.json"))


@section
class LteSection:
    """Which LTEs are computed.

    Attributes:
        windows: Days before the end of ds, oldest-newest.
        methods: ``uniform``, ``recency``, ``behaviour`` (section [behaviour]) or several of them.
        half_life_days: After so many days an interaction weighs half in ``recency``.
        count: ``each`` interaction, or each ``distinct`` item once.
    """

    windows: Annotated[tuple[Window, ...], EachOnce] = ("365-60",)
    methods: Annotated[tuple[LteMethod, ...], EachOnce] = ("uniform", "recency")
    half_life_days: Positive = 90.0
    count: Literal["each", "distinct"] = "each"


@section
class BehaviourSection:
    """Method ``behaviour``: averages of behaviour vectors, EASE's item-item weights times the basis (ADR 0013).

    Attributes:
        l2: Ridge of EASE, in users: an item needs about so many users before its weights count.
        rank: Singular vectors of the histories that stand for them; 0 for the exact solution, which needs at most
            20,000 users or 20,000 items.
        refit_days: Days that one fit is used. LTEs of the days before and after a refit are not compared.
    """

    l2: Positive = 100.0
    rank: Natural = 0
    refit_days: Count = 28


@section
class DriftSection:
    """Against which earlier days a run is compared."""

    offsets_days: Offsets = (1, 5, 10)


@section
class GatesSection:
    """Limits of the quality gate; a value outside them blocks publishing.

    Attributes:
        min_users: Fewest users in the LTE slice that is published.
        max_users_lost_share: Largest share of yesterday's users that may be missing today.
        max_users_change_share: Largest relative change of the number of users since yesterday.
        max_unknown_share: Largest share of interactions in the window whose item has no vector.
        min_cosine_p01: Lowest 1 % quantile of the cosine with yesterday's LTE, over users with 20 or more interactions.
        max_drift_p99: Highest 99 % quantile of the one-day drift, over users with 20 or more interactions.
        min_volume_share: Smallest number of interactions of ds, as a share of the usual number: the median of the same
            weekday in the last 28 days. Not judged where 10 or fewer are usual.
        max_volume_share: Largest number of interactions of ds, as a share of the usual number.
        max_event_age_days: Most days between ds and the newest day with interactions.
        max_zero_share: Largest share of users whose LTE is the zero vector, because no item of theirs is in the window.
        max_bound_violations: Users whose drift broke the bound that always holds; a violation is a bug or bad data.
        max_unembedded_share: Largest share of the catalogue without a vector.
        min_autoencoder_cosine_p01: Lowest 1 % quantile of the cosine of the autoencoder's LTE with yesterday's, over
            users with 20 or more items; the encoder is trained again each day, so no bound covers it.
        max_autoencoder_drift_p99: Highest 99 % quantile of its distance from yesterday's over the norm of yesterday's,
            over the same users.
        min_autoencoder_uniform_cosine_p50: Lowest median of its cosine with the same day's uniform LTE, both less their
            means over users (0.28 on the sample): near 0 where the two have nothing to do with each other.
        max_drill_loss: Largest share of the live ranker's NDCG that an earlier ranker may lose in the rollback drill;
            the low end of the loss's 95 % interval is judged. It blocks no publishing: the drill alone fails.
    """

    min_users: Natural = 1
    max_users_lost_share: NonNegative = 0.05
    max_users_change_share: NonNegative = 0.2
    max_unknown_share: NonNegative = 0.2
    min_volume_share: NonNegative = 0.2
    max_volume_share: NonNegative = 5.0
    max_event_age_days: Natural = 7
    max_zero_share: NonNegative = 0.99
    min_cosine_p01: Cosine = 0.8
    max_drift_p99: Annotated[float, Field(ge=0, le=2)] = 0.4
    max_bound_violations: Natural = 0
    max_unembedded_share: NonNegative = 0.5
    min_autoencoder_cosine_p01: Cosine = 0.5
    max_autoencoder_drift_p99: NonNegative = 1.0
    min_autoencoder_uniform_cosine_p50: Cosine = 0.1
    max_drill_loss: Share = 0.05


@section
class HealthSection:
    """Health of the embeddings, measured by validate on a sample; the limits block publishing.

    Attributes:
        enabled: Whether it is measured.
        sample_users: Users per slice, at least, chosen by a hash of their id.
        max_psi: Largest population stability index of the norms, and of n_items, against yesterday.
        max_ks: Largest Kolmogorov-Smirnov distance of the same.
        max_centroid_shift: Largest distance of the mean LTE from yesterday's, over the mean norm.
        max_frozen_share: Largest share of the users whose n_items changed and whose vector did not.
        min_effective_rank_share: Smallest effective rank, as a share of yesterday's.
        retrain_psi: PSI of the norms of the autoencoder's LTEs against 28 days ago above which the next training starts
            from scratch instead of yesterday's weights; it blocks nothing.
    """

    enabled: bool = True
    sample_users: Count = 5_000
    max_psi: NonNegative = 0.25
    max_ks: NonNegative = 0.2
    max_centroid_shift: NonNegative = 0.1
    max_frozen_share: Share = 0.05
    min_effective_rank_share: Share = 0.7
    retrain_psi: NonNegative = 1.0


@section
class PublishSection:
    """The online store and the slice of user_lte that it serves.

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

    store: Literal["lmdb", "redis"] = "lmdb"
    method: str = "uniform"
    window: Window = "365-60"
    redis_url: str = "redis://localhost:6379/0"
    redis_username: str = ""
    redis_password: str = field(default="", repr=False)
    redis_ca_file: str = ""
    redis_cert_file: str = ""
    redis_key_file: str = ""
    redis_prefix: str = "lte"


@section
class RetentionSection:
    """How far back tables can be read and restored."""

    rollback_days: Natural = 14


@section
class TrackingSection:
    """MLflow, where each training leaves its curves, parameters and manifest.

    Attributes:
        uri: Of MLflow: a server, a database, ``local`` for SQLite under ``models`` in the lake, or empty for none.
        experiment: Name of the experiment; empty for the deployment's name.
    """

    uri: str = "local"
    experiment: str = ""


@section
class AlertsSection:
    """Who is told about a day; nothing is sent unless ``webhook`` or ``email_to`` is set.

    Attributes:
        webhook: Address that a message is posted to. It is secret: ``LTE_ALERTS__WEBHOOK`` keeps it out of files.
        format: Form of the webhook's message: ``slack``, ``teams`` (Workflows) or ``json`` (title and text).
        when: ``alarm``: days with an alarm. ``always``: every day.
        page_url: Address under which readers of the message find ``paths.reports``; empty for the path on this machine.
        email_to: Addresses of the e-mail.
        email_from: Its sender.
        smtp_host: Server that takes the e-mail.
        smtp_port: Its port.
        smtp_tls: Whether the connection is encrypted (STARTTLS).
        smtp_username: User at the server; empty for none.
        smtp_password: Its password; ``LTE_ALERTS__SMTP_PASSWORD`` keeps it out of files.
    """

    webhook: str = field(default="", repr=False)
    format: Literal["slack", "teams", "json"] = "slack"
    when: Literal["alarm", "always"] = "alarm"
    page_url: str = ""
    email_to: tuple[str, ...] = ()
    email_from: str = ""
    smtp_host: str = "localhost"
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 25
    smtp_tls: bool = True
    smtp_username: str = ""
    smtp_password: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Refuse a webhook that would send the report unencrypted to another machine, and an e-mail without sender."""
        if self.webhook and not WEBHOOK.match(self.webhook):
            # The address is secret, so it is not shown.
            raise ConfigError(
                "alerts.webhook must begin with https:// or http://localhost, and the present value does not"
            )
        if self.email_to:
            expect("@" in self.email_from, "alerts.email_from", "an address, because email_to is set", self.email_from)
        if self.smtp_password:
            what = "true, because a password must not be sent unencrypted"
            expect(self.smtp_tls, "alerts.smtp_tls", what, self.smtp_tls)


@section
class Deployment:
    """Everything that a deployment sets; see ``configs/complete_journey.toml`` for one with comments."""

    deployment: DeploymentSection
    paths: PathsSection
    engine: EngineSection = field(default_factory=EngineSection)
    interactions: InteractionsSection = field(default_factory=InteractionsSection)
    landing: LandingSection = field(default_factory=LandingSection)
    basis: BasisSection = field(default_factory=BasisSection)
    lte: LteSection = field(default_factory=LteSection)
    behaviour: BehaviourSection = field(default_factory=BehaviourSection)
    drift: DriftSection = field(default_factory=DriftSection)
    gates: GatesSection = field(default_factory=GatesSection)
    health: HealthSection = field(default_factory=HealthSection)
    publish: PublishSection = field(default_factory=PublishSection)
    retention: RetentionSection = field(default_factory=RetentionSection)
    autoencoder: AutoencoderSection = field(default_factory=AutoencoderSection)
    ranker: RankerSection = field(default_factory=RankerSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)
    experiment: ExperimentSection = field(default_factory=ExperimentSection)
    alerts: AlertsSection = field(default_factory=AlertsSection)

    def __post_init__(self) -> None:
        """Refuse to publish a slice that no job computes, and models that read other LTEs than there are."""
        methods, windows = list(self.lte.methods), list(self.lte.windows)
        publish, encoder = self.publish, self.autoencoder
        expect(publish.method in methods, "publish.method", f"one of lte.methods {methods}", publish.method)
        expect(publish.window in windows, "publish.window", f"one of lte.windows {windows}", publish.window)
        if encoder.enabled:
            # The autoencoder's LTEs are compared with uniform ones, which also stand in for them.
            hint = "or autoencoder.enabled = false"
            expect("uniform" in methods, "lte.methods", f"uniform among them for the autoencoder, {hint}", methods)
            what = f"one of lte.windows {windows}, {hint}"
            expect(encoder.window in windows, "autoencoder.window", what, encoder.window)
        if self.ranker.enabled and self.ranker.lte != "none":
            self._expect_served()

    def _expect_served(self) -> None:
        """Refuse to serve a ranker other LTEs than the LTEs that it was trained with."""
        ranker, publish, hint = self.ranker, self.publish, "or ranker.enabled = false"
        what = f"each for a ranker with ranker.lte = {ranker.lte!r}, {hint}"
        expect(self.lte.count == "each", "lte.count", what, self.lte.count)
        what = f"publish.method = {publish.method!r}, {hint}"
        expect(ranker.method == publish.method, "ranker.method", what, ranker.method)
        window = ranker_window(is_lagged=ranker.lagged)
        what = f"the one that reads publish.window = {publish.window!r} and not {window!r}, {hint}"
        expect(window == publish.window, "ranker.lagged", what, ranker.lagged)
