"""Users of the made fashion shop: when each user comes, for which category, and what the user clicks.

All draws come from one seed, and no clock is read.

Axes: U users, N items, T days, S sessions, C clicks, F item features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jobs.config.window import ConfigError
from jobs.samples.fashion.items import TIERS

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Market, hours ahead of UTC, share of the users (normalised below).
MARKETS: tuple[tuple[str, int, float], ...] = (
    ("de", 1, 22), ("fr", 1, 11), ("it", 1, 9), ("pl", 1, 9), ("nl", 1, 8), ("es", 1, 6), ("ch", 1, 6), ("at", 1, 5),
    ("be", 1, 4), ("se", 1, 4), ("dk", 1, 3), ("cz", 1, 3), ("gb", 0, 2), ("no", 1, 2), ("fi", 2, 2), ("ie", 0, 1),
    ("ro", 2, 1), ("hu", 1, 1), ("sk", 1, 0.8), ("hr", 1, 0.6), ("si", 1, 0.5), ("lt", 2, 0.5), ("lv", 2, 0.4),
    ("ee", 2, 0.4), ("lu", 1, 0.3),
)  # fmt: skip

# Day of the year on which each season sells best.
SEASONS = {"spring": 100, "summer": 190, "autumn": 280, "fall": 280, "winter": 355}
ALL_YEAR = -1
_CHUNK_CELLS = 4_000_000

# Smallest and largest value of each setting. User ids have seven digits; taste is an exponent in 32-bit floats.
_RANGES = {
    "users": (1, 9_999_999),
    "days": (1, 10_000),
    "seed": (0, 2**63 - 1),
    "taste": (0, 100),
    "sessions_per_day": (0.0001, 100),
    "clicks_per_session": (1, 1000),
    "mission_share": (0, 1),
    "stray_share": (0, 1),
    "burst_share": (0, 1),
}

_FIRST_DAYS = (date(1970, 1, 1), date(2200, 1, 1))


class ShopError(ValueError):
    """The shop cannot be simulated; the message names the setting."""


class ShopSettingError(ShopError, ConfigError):
    """A setting, or the flag of the same name, is out of its range."""


def check_setting(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], and NaN.

    Raises:
        ShopSettingError: The number is outside; the message names the flag, the value and the range.
    """
    if not low <= value <= high:
        wanted = f"from {low:,} to {high:,}" if math.isfinite(high) else f"of at least {low:,}"
        raise ShopSettingError(f"--{name.replace('_', '-')} {value}: expected a number {wanted}")


@dataclass(frozen=True)
class ShopConfig:
    """Behaviour of the simulated users.

    Attributes:
        users: Number of users that ever sign up.
        days: Number of days on which the shop is open.
        first_day: First day on which the shop is open, UTC.
        seed: The same seed gives the same shop.
        taste: Strength of the planted long-term taste; 0 for no taste.
        sessions_per_day: Sessions per day of the median user, while the user is active.
        clicks_per_session: Mean number of clicks per session.
        mission_share: Chance that a session within a week of the last session continues its mission.
        stray_share: Share of the clicks of a session that are outside its category.
        burst_share: Share of the sessions that are a burst of 30 to 80 random clicks.
    """

    users: int = 22_000
    days: int = 450
    first_day: str = "2024-01-01"
    seed: int = 0
    taste: float = 1.0
    sessions_per_day: float = 0.05
    clicks_per_session: float = 4.0
    mission_share: float = 0.5
    stray_share: float = 0.08
    burst_share: float = 0.003

    def __post_init__(self) -> None:
        """Refuse settings that cannot be simulated.

        Raises:
            ShopSettingError: A setting is out of its range.
        """
        for name, (low, high) in _RANGES.items():
            check_setting(name, getattr(self, name), low, high)
        first, last = _FIRST_DAYS
        day = _day(self.first_day)
        if day is None or not first <= day <= last:
            raise ShopSettingError(
                f"--first-day {self.first_day!r}: expected a day from {first} to {last}, as YYYY-MM-DD"
            )


def _day(text: str) -> date | None:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if text == day.isoformat() else None  # Python reads 20240101 and 2024-W01-1, too


@dataclass(frozen=True)
class Shelf:
    """The items on sale, and the features that a taste can be about.

    Attributes:
        features: float32 [N, F], features that a taste can be about.
        feature_scale: float32 [F], strength of a taste for each feature.
        category: int [N], number of the category.
        n_categories: Number of categories.
        popularity: float32 [N], without the effects of season and novelty.
        peak_day: int [N], day of the year on which the item sells best; ``ALL_YEAR`` for no such day.
        launched: int [N], first day on sale; below 0 if the item was on sale before the shop's first day.
        retired: int [N], first day on which the item is no longer on sale.
    """

    features: Floats
    feature_scale: Floats
    category: Ints
    n_categories: int
    popularity: Floats
    peak_day: Ints
    launched: Ints
    retired: Ints


def stock_shelf(items: pd.DataFrame, config: ShopConfig) -> Shelf:
    """Give each item its features, popularity, first day and last day on sale. A few items sell most.

    Args:
        items: Catalogue with category, brand, price_tier, season and perhaps style.
        config: Settings.
    """
    rng = np.random.default_rng([config.seed, 2])
    n = len(items)
    category, names = pd.factorize(items["category"].fillna("").astype(str), sort=True)
    features, scale = item_features(items)
    launched = np.where(rng.random(n) < 0.55, -rng.integers(0, 200, n), rng.integers(0, config.days, n))
    retired = launched + 90 + rng.exponential(320, n).astype(np.int64)
    for number in range(len(names)):  # no category is ever sold out
        evergreen = np.flatnonzero(category == number)[:3]
        launched[evergreen], retired[evergreen] = -1, config.days
    return Shelf(
        features=features,
        feature_scale=scale,
        category=category.astype(np.int64),
        n_categories=len(names),
        popularity=rng.lognormal(0, 1.1, n).astype(np.float32),
        peak_day=peak_days(items["season"]),
        launched=launched.astype(np.int64),
        retired=retired.astype(np.int64),
    )


def peak_days(seasons: pd.Series) -> Ints:
    """Day of the year on which each item sells best, int [N]; ``ALL_YEAR`` for other words. Letter case is ignored."""
    named = seasons.astype("string").str.strip().str.casefold()
    days: Ints = named.map(SEASONS).astype("Int64").fillna(ALL_YEAR).to_numpy(np.int64)
    return days


def item_features(items: pd.DataFrame) -> tuple[Floats, Floats]:
    """Features that a taste can be about: style, brand, price tier. Without a style, words of the texts stand in.

    Returns:
        float32 [N, F] features, float32 [F] strength of a taste for each.
    """
    blocks = [_styles(items), _one_hot(items["brand"]), _tiers(items)]
    strengths = (1.6, 1.2, 1.0)
    scale = [np.full(block.shape[1], strength, np.float32) for block, strength in zip(blocks, strengths, strict=True)]
    return np.concatenate(blocks, axis=1), np.concatenate(scale)


def _styles(items: pd.DataFrame) -> Floats:
    return _one_hot(items["style"]) if "style" in items else _word_features(items)


def _one_hot(column: pd.Series) -> Floats:
    codes, names = pd.factorize(column.astype("string"), sort=True)  # null has code -1: no feature
    flags: Floats = (codes[:, None] == np.arange(len(names))).astype(np.float32)
    return flags


def _tiers(items: pd.DataFrame) -> Floats:
    """One column per tier that occurs; each of the usual four tiers overlaps with its neighbours."""
    tiers = items["price_tier"].astype("string")
    if not set(tiers.dropna()) <= set(TIERS):
        return _one_hot(tiers)
    place = tiers.map({name: number for number, name in enumerate(TIERS)}).astype("float").to_numpy()
    near = 1 - np.abs(place[:, None] - np.arange(len(TIERS))) / 2
    nearness: Floats = np.nan_to_num(np.clip(near, 0, 1)).astype(np.float32)
    return nearness


def _word_features(items: pd.DataFrame, size: int = 16) -> Floats:
    """Random projection of the words of title and description, float32 [N, size]; a rare word weighs more."""
    texts = (items["title"].fillna("") + " " + items["description"].fillna("")).str.lower().str.findall(r"\w+")
    words = texts.explode().dropna()
    codes, names = pd.factorize(words, sort=True)
    rarity = np.log(len(items) / np.bincount(codes, minlength=len(names)))
    directions = np.random.default_rng(0).standard_normal((len(names), size)) * rarity[:, None]
    sums = np.zeros((len(items), size))
    np.add.at(sums, words.index.to_numpy(), directions[codes])
    lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)
    projected: Floats = (sums / lengths).astype(np.float32)
    return projected


def user_tastes(shelf: Shelf, config: ShopConfig) -> Floats:
    """The stable taste of each user, float32 [U, F]: a user likes a few features a lot. All values are 0 at taste 0."""
    rng = np.random.default_rng([config.seed, 3])
    liking = rng.gamma(0.35, 1.0, (config.users, shelf.features.shape[1])).astype(np.float32)
    return config.taste * 1.5 * liking * shelf.feature_scale


def market_of_users(config: ShopConfig) -> Ints:
    """Number of the market of each user, int [U]. Markets differ only in size and clock."""
    rng = np.random.default_rng([config.seed, 4])
    share = np.array([weight for _, _, weight in MARKETS])
    return rng.choice(len(MARKETS), config.users, p=share / share.sum())


def session_days(config: ShopConfig) -> tuple[Ints, Ints]:
    """User and day of each session, int [S] each, ordered by user and day.

    The number of sessions per day differs between users (log-normal). 45 % of the users sign up during the simulation
    (cold users). 15 % leave and do not return. 25 % pause for two to seven months (returning users). Weekends and
    November are busy.
    """
    rng = np.random.default_rng([config.seed, 5])
    users, days = config.users, config.days
    rate = np.minimum(config.sessions_per_day * rng.lognormal(0, 0.9, users), 0.8)
    signup = np.where(rng.random(users) < 0.55, 0, rng.integers(0, days, users))
    leaves = np.where(rng.random(users) < 0.15, rng.integers(0, days, users), days)
    pause = np.where(rng.random(users) < 0.25, rng.integers(0, days, users), days)
    back = pause + rng.integers(60, 210, users)
    day = np.arange(days)
    present = (day >= signup[:, None]) & (day < leaves[:, None]) & ~((day >= pause[:, None]) & (day < back[:, None]))
    counts = rng.poisson(present * rate[:, None] * _busy(config)[None, :])
    user, at = np.nonzero(counts)
    times = counts[user, at]
    return np.repeat(user, times), np.repeat(at, times)


def _dates(config: ShopConfig) -> pd.DatetimeIndex:
    return pd.date_range(config.first_day, periods=config.days, freq="D")


def _busy(config: ShopConfig) -> NDArray[np.float64]:
    dates = _dates(config)
    factor: NDArray[np.float64] = 1.0 + 0.25 * (dates.dayofweek >= 5) + 0.6 * ((dates.month == 11) & (dates.day > 15))
    return factor


def season_factor(peak_day: Ints, day_of_year: int) -> NDArray[np.float64]:
    """Factor of an item's sales on a day of the year: 0.25 to 1.75, largest on the peak day; 1 without a peak day."""
    wave = 1 + 0.75 * np.cos(2 * np.pi * (day_of_year - peak_day) / 365.25)
    return np.where(peak_day < 0, 1.0, wave)


def demand(shelf: Shelf, config: ShopConfig, day: int) -> Floats:
    """Popularity of each item on a day with season and novelty, float32 [N]; 0 for an item that is not on sale."""
    season = season_factor(shelf.peak_day, int(_dates(config).dayofyear[day]))
    age = np.maximum(day - shelf.launched, 0)
    on_sale = (shelf.launched <= day) & (day < shelf.retired)
    wanted: Floats = (shelf.popularity * season * (1 + 3 * np.exp(-age / 15)) * on_sale).astype(np.float32)
    return wanted


def mission_numbers(user: Ints, day: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Number of each session's mission, int [S]: a session may continue the same user's mission of the last week."""
    same = (np.diff(user, prepend=-1) == 0) & (np.diff(day, prepend=0) <= 7)
    goes_on = same & (rng.random(len(user)) < share)
    return np.cumsum(~goes_on) - 1


def mission_categories(user: Ints, day: Ints, tastes: Floats, shelf: Shelf, config: ShopConfig) -> Ints:
    """Category of each mission, int [M], by the demand of its first day and the user's taste.

    The taste for a category is the taste for its average item, so at taste 0 the category does not depend on the user.
    """
    rng = np.random.default_rng([config.seed, 6])
    members = (shelf.category == np.arange(shelf.n_categories)[:, None]).astype(np.float32)
    average = members @ shelf.features / np.maximum(members.sum(1, keepdims=True), 1)
    chosen = np.empty(len(user), dtype=np.int64)
    for at, rows in _groups(day):
        # The square root gives small categories a chance.
        weight = np.sqrt(members @ demand(shelf, config, at))
        chosen[rows] = _draw(weight, tastes[user[rows]] @ average.T, rng)
    return chosen


def choose_items(click: pd.DataFrame, tastes: Floats, shelf: Shelf, config: ShopConfig) -> Ints:
    """Choose the item of each click, int [C]: softmax of log demand plus taste, over the items on sale in the category.

    Args:
        click: user, day, category of each click; category -1 for all items on sale.
        tastes: From :func:`user_tastes`.
        shelf: Items on sale.
        config: Settings.
    """
    rng = np.random.default_rng([config.seed, 7])
    user, day, category = (click[name].to_numpy() for name in ("user", "day", "category"))
    items = np.empty(len(click), dtype=np.int64)
    for at, rows in _groups(day):
        wanted = demand(shelf, config, at)
        for number, within in _groups(category[rows]):
            offered = np.flatnonzero((wanted > 0) & ((shelf.category == number) | (number < 0)))
            for part in np.array_split(rows[within], 1 + len(within) * len(offered) // _CHUNK_CELLS):
                liking = tastes[user[part]] @ shelf.features[offered].T  # [clicks, offered]
                items[part] = offered[_draw(wanted[offered], liking, rng)]
    return items


def _draw(weight: Floats, liking: Floats, rng: np.random.Generator) -> Ints:
    """One column per row with probability proportional to ``weight * exp(liking)``: [n, m] to int [n]."""
    chance = np.exp(liking - liking.max(axis=1, keepdims=True)) * weight
    reached = np.cumsum(chance, axis=1, dtype=np.float64)
    target = rng.random((len(liking), 1)) * reached[:, -1:]
    column: Ints = np.minimum((reached <= target).sum(axis=1), liking.shape[1] - 1)
    return column


def _groups(keys: Ints) -> Iterator[tuple[int, Ints]]:
    """Each different key with the positions that hold it."""
    order = np.argsort(keys, kind="stable")
    values, starts = np.unique(keys[order], return_index=True)
    yield from zip(values.tolist(), np.split(order, starts[1:]), strict=True)


def simulate_interactions(items: pd.DataFrame, shelf: Shelf, config: ShopConfig) -> pd.DataFrame:
    """All interactions of all users.

    Args:
        items: The catalogue; ``item_id`` names the rows of the shelf.
        shelf: From :func:`stock_shelf`.
        config: Settings.

    Returns:
        user_id, item_id, event_ts (UTC, milliseconds), interaction_type, market, session_id; ordered by time. Events
        after the last day are left out.

    Raises:
        ShopSettingError: No user comes, because there are too few users, days or sessions per day.
    """
    tastes = user_tastes(shelf, config)
    user, day = session_days(config)
    _refuse_nobody(len(user), config)
    rng = np.random.default_rng([config.seed, 8])
    mission = mission_numbers(user, day, config.mission_share, rng)
    first = np.unique(mission, return_index=True)[1]
    category = mission_categories(user[first], day[first], tastes, shelf, config)[mission]
    sessions = pd.DataFrame({"user": user, "day": day, "mission": mission, "category": category})
    sessions["burst"] = rng.random(len(sessions)) < config.burst_share
    clicks = _clicks(sessions, config, rng)
    clicks["item"] = choose_items(clicks, tastes, shelf, config)
    clicks["item"] = _with_revisits(clicks, shelf, rng)
    events = _with_funnel(_with_times(clicks, config, rng), rng)
    landed = _as_landed(events, items, config)
    _refuse_nobody(len(landed), config)
    return landed


def _refuse_nobody(n_rows: int, config: ShopConfig) -> None:
    if n_rows == 0:
        settings = f"--users {config.users}, --days {config.days}, --sessions-per-day {config.sessions_per_day}"
        raise ShopSettingError(f"{settings}: nobody comes in that time; one of them has to be larger")


def _clicks(sessions: pd.DataFrame, config: ShopConfig, rng: np.random.Generator) -> pd.DataFrame:
    """One row per click: session, user, day, mission, burst, category (-1 for a stray click, and in a burst)."""
    usual = rng.geometric(1 / config.clicks_per_session, len(sessions))
    count = np.where(sessions["burst"], rng.integers(30, 81, len(sessions)), np.minimum(usual, 30))
    clicks = sessions.loc[np.repeat(np.arange(len(sessions)), count)]
    clicks = clicks.rename_axis("session").reset_index()
    stray = clicks["burst"] | (rng.random(len(clicks)) < config.stray_share)
    clicks["category"] = clicks["category"].where(~stray, -1)
    return clicks


def _with_revisits(clicks: pd.DataFrame, shelf: Shelf, rng: np.random.Generator) -> Ints:
    """Items of the clicks: a quarter of the clicks of a continued mission return to an item of the mission on sale."""
    mission, day = clicks["mission"].to_numpy(), clicks["day"].to_numpy()
    start = np.searchsorted(mission, mission)  # first click of the mission
    session = clicks["session"].to_numpy()
    before = np.searchsorted(session, session) - start  # clicks of the mission in earlier sessions
    source = start + (rng.random(len(clicks)) * before).astype(np.int64)
    returns = (before > 0) & (rng.random(len(clicks)) < 0.25) & ~clicks["burst"].to_numpy()
    item = clicks["item"].to_numpy().copy()
    old = item[source]
    chosen: Ints = np.where(returns & (day < shelf.retired[old]), old, item)
    return chosen


def _with_times(clicks: pd.DataFrame, config: ShopConfig, rng: np.random.Generator) -> pd.DataFrame:
    """Add ``ms``, milliseconds since the start of the first day. Sessions begin in the market's evening."""
    session, first = np.unique(clicks["session"], return_index=True)
    hour = rng.triangular(5, 20.5, 23.99, len(session))  # of the market; 2 hours ahead at most
    ahead = np.array([hours for _, hours, _ in MARKETS])[market_of_users(config)]
    begin = clicks["day"].to_numpy()[first] * 24.0 + hour - ahead[clicks["user"].to_numpy()[first]]
    gap = np.where(clicks["burst"], 4.0, rng.exponential(55, len(clicks)) + 3)  # seconds
    elapsed = np.cumsum(gap)
    clicks["ms"] = ((np.repeat(begin, np.diff([*first, len(clicks)])) * 3600) * 1000).astype(np.int64)
    clicks["ms"] += ((elapsed - np.repeat(elapsed[first], np.diff([*first, len(clicks)]))) * 1000).astype(np.int64)
    return clicks


def _with_funnel(clicks: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Add the events that follow a click: wishlist (9 %), cart (12 %), and checkout of 45 % of the carts."""
    draw = rng.random((len(clicks), 3))
    usual = ~clicks["burst"].to_numpy()
    wish, cart = usual & (draw[:, 0] < 0.09), usual & (draw[:, 1] < 0.12)
    steps = {"click": (usual | ~usual, 0), "wishlist": (wish, 1200), "cart": (cart, 2100)}
    steps["checkout"] = (cart & (draw[:, 2] < 0.45), 420_000)
    parts = [clicks.loc[mask].assign(interaction_type=name, ms=lambda rows, d=delay: rows["ms"] + d)
             for name, (mask, delay) in steps.items()]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _as_landed(events: pd.DataFrame, items: pd.DataFrame, config: ShopConfig) -> pd.DataFrame:
    events = events[events["ms"] < config.days * 86_400_000].sort_values(["ms", "user"], kind="stable")
    market = np.array([name for name, _, _ in MARKETS])[market_of_users(config)]
    user = events["user"].to_numpy()
    landed = pd.DataFrame(
        {
            "user_id": pd.Series(user).map("U{:07d}".format),
            "item_id": items["item_id"].to_numpy()[events["item"]],
            "event_ts": pd.Timestamp(config.first_day, tz="UTC") + pd.to_timedelta(events["ms"].to_numpy(), unit="ms"),
            "interaction_type": events["interaction_type"].to_numpy(),
            "market": market[user],
            "session_id": pd.Series(events["session"].to_numpy()).map("S{:08d}".format),
        }
    )
    return landed.drop_duplicates(["user_id", "item_id", "event_ts", "interaction_type"], ignore_index=True)
