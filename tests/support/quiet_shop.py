"""A simulated shop whose LTEs change as slowly as they should, and 100 faults that are planted into its days."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from jobs.health.samples import LteSample

N_USERS, N_ITEMS, DIM = 400, 60, 8
WINDOW_DAYS, LAG_DAYS, N_DAYS = 150, 30, 560
FIRST_DAY = WINDOW_DAYS + 28  # the first day whose comparison with 28 days ago is complete

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShopDay:
    """One day as the tables hold it.

    Attributes:
        vectors: float32 [U, D], LTEs.
        counts: int [U, V], interactions in the window as they were landed.
        n_items: int [U], interactions that each LTE says it averages.
        users: Rows of the users that are in the table.
    """

    vectors: npt.NDArray[np.float32]
    counts: Ints
    n_items: Ints
    users: Ints

    def sample(self) -> LteSample:
        """What the health measures read."""
        kept = self.users[self.n_items[self.users] > 0]
        return LteSample([f"u{user:03d}" for user in kept], self.vectors[kept], self.n_items[kept])


class QuietShop:
    """Users with tastes that do not change; weekdays and a yearly season in the number of interactions."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.basis = rng.normal(size=(N_ITEMS, DIM))
        self.basis /= np.linalg.norm(self.basis, axis=1, keepdims=True)
        taste = rng.dirichlet(np.full(N_ITEMS, 0.3), size=N_USERS)
        day = np.arange(N_DAYS)
        season = (1 + 0.2 * np.sin(2 * np.pi * day / 365)) * np.where(day % 7 == 6, 0.3, 1.0)
        rate = rng.gamma(2.0, 0.15, size=N_USERS)
        events = rng.poisson(season[:, None, None] * rate[None, :, None] * taste[None])
        self.cumulative = np.concatenate([np.zeros((1, N_USERS, N_ITEMS), np.int64), events.cumsum(axis=0)])

    def counts(self, day: int) -> Ints:
        """Interactions of each user with each item in the window of a day."""
        found: Ints = self.cumulative[day - LAG_DAYS] - self.cumulative[day - WINDOW_DAYS]
        return found

    def day(self, day: int, basis: Floats | None = None) -> ShopDay:
        """A good day; with another basis, what the job would compute with that basis."""
        counts = self.counts(day)
        return ShopDay(averages(counts, self.basis if basis is None else basis), counts, counts.sum(axis=1),
                       np.arange(N_USERS))  # fmt: skip


def averages(counts: Ints, basis: Floats) -> npt.NDArray[np.float32]:
    """Uniform LTEs, float32 [U, D]."""
    return (counts @ basis / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)


Fault = Callable[[QuietShop, int, np.random.Generator], ShopDay]


def swapped_basis(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    rotation = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    return shop.day(day, shop.basis @ rotation)


def permuted_items(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    basis, chosen = shop.basis.copy(), rng.choice(N_ITEMS, N_ITEMS // 20, replace=False)
    basis[chosen] = basis[np.roll(chosen, 1)]
    return shop.day(day, basis)


def shifted_windows(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    good, late = shop.day(day), shop.day(day - 1)
    half = rng.permutation(N_USERS)[: N_USERS // 2]
    vectors, n_items = good.vectors.copy(), good.n_items.copy()
    vectors[half], n_items[half] = late.vectors[half], late.n_items[half]
    return replace(good, vectors=vectors, n_items=n_items)


def frozen_vectors(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    return replace(shop.day(day), vectors=shop.day(day - 1).vectors)


def doubled_day(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    good = shop.day(day)
    back = int(rng.integers(LAG_DAYS, WINDOW_DAYS))
    twice = good.counts + shop.cumulative[day - back + 1] - shop.cumulative[day - back]
    return replace(good, vectors=averages(twice, shop.basis), n_items=twice.sum(axis=1))


def noise(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    good = shop.day(day)
    return replace(good, vectors=(good.vectors + rng.normal(0, 0.05, good.vectors.shape)).astype(np.float32))


def scaled(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    good = shop.day(day)
    return replace(good, vectors=good.vectors * np.float32(rng.choice([0.7, 1.4])))


def collapsed(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    good = shop.day(day)
    mean = good.vectors.mean(axis=0)
    return replace(good, vectors=(mean + 0.01 * (good.vectors - mean)).astype(np.float32))


def lost_users(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    return replace(shop.day(day), users=np.sort(rng.permutation(N_USERS)[: int(0.9 * N_USERS)]))


def swapped_users(shop: QuietShop, day: int, rng: np.random.Generator) -> ShopDay:
    good, chosen = shop.day(day), rng.permutation(N_USERS)[: N_USERS // 10]
    vectors = good.vectors.copy()
    vectors[chosen] = vectors[np.roll(chosen, 1)]
    return replace(good, vectors=vectors)


FAULTS: dict[str, Fault] = {
    "another basis (a rotation)": swapped_basis,
    "vectors of 5 % of the items permuted": permuted_items,
    "windows of half of the users a day late": shifted_windows,
    "frozen vectors": frozen_vectors,
    "one day of the window counted twice": doubled_day,
    "noise of .05 in every number": noise,
    "all vectors 0.7 or 1.4 times as long": scaled,
    "all vectors near the mean": collapsed,
    "10 % of the users missing": lost_users,
    "vectors of 10 % of the users swapped": swapped_users,
}
