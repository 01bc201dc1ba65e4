"""Statistics of an A/B test whose users were assigned at random: uplift, interval, SRM, power.

A KPI is a ratio of two sums over users, ``sum(n) / sum(d)``; a mean per user has d = 1. To first order the ratio moves
with user u by ``(n_u - R d_u) / mean(d)`` (delta method; Deng, Knoblich, Lu 2018, "Applying the Delta Method in Metric
Analytics"). So each KPI becomes one number per user, and CUPED, intervals and power work on these numbers.

Axes: U users of one variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from lte_models.arrays import Float64Array

ALPHA = 0.05
POWER = 0.8
# A broken split shows in every later number, so its alarm must be rare: the usual limit of SRM checks.
SRM_ALPHA = 0.001


@dataclass(frozen=True)
class Sample:
    """One number per user: the user's part in a KPI.

    Attributes:
        values: float [U]; their mean is the KPI.
        before: float [U], the same KPI before the test, for CUPED; None where it was not measured.
    """

    values: Float64Array
    before: Float64Array | None = None


@dataclass(frozen=True)
class Effect:
    """What a variant changed in one KPI, against the control.

    Attributes:
        control: KPI of the control (after CUPED, where CUPED was used).
        variant: KPI of the variant.
        difference: ``variant - control``.
        difference_low: Lower end of the 95 % interval of ``difference`` (Welch).
        difference_high: Upper end.
        uplift: ``variant / control - 1``.
        low: Lower end of the 95 % interval of ``uplift``.
        high: Upper end.
        p: Two-sided, of ``uplift`` = 0; below .05 exactly where the interval leaves out 0.
        anytime_low: Lower end of the interval that holds on all days together.
        anytime_high: Upper end.
        mde: Smallest uplift that a test of this size finds with a power of 80 %.
        n_control: Users of the control.
        n_variant: Users of the variant.
    """

    control: float
    variant: float
    difference: float
    difference_low: float
    difference_high: float
    uplift: float
    low: float
    high: float
    p: float
    anytime_low: float
    anytime_high: float
    mde: float
    n_control: int
    n_variant: int


def sample(
    numerator: Float64Array,
    denominator: Float64Array,
    before: tuple[Float64Array, Float64Array] | None = None,
) -> Sample:
    """One variant's users as one number each.

    Args:
        numerator: float [U].
        denominator: float [U]; ones for a mean per user.
        before: Numerator and denominator of the time before the test, for CUPED.

    Raises:
        ValueError: There are fewer than two users, shapes differ, a value is not finite, or the denominator sums to 0.
    """
    values = linearised(numerator, denominator)
    if before is None or before[1].sum() <= 0:
        return Sample(values)
    return Sample(values, linearised(*before))


def linearised(numerator: Float64Array, denominator: Float64Array) -> Float64Array:
    """``R + (n - R d) / mean(d)`` with ``R = sum(n) / sum(d)``: float [U], whose mean is R and whose variance is R's.

    Raises:
        ValueError: As in :func:`sample`.
    """
    if numerator.shape != denominator.shape or numerator.ndim != 1 or len(numerator) < 2:
        raise ValueError(f"a KPI: expected two users or more, got {numerator.shape} over {denominator.shape}")
    if not (np.isfinite(numerator).all() and np.isfinite(denominator).all()):
        raise ValueError("a KPI: expected finite values, got NaN or an infinite one")
    if denominator.sum() <= 0:
        raise ValueError("a KPI: its denominator is 0 for all users, so there is no ratio")
    ratio = numerator.sum() / denominator.sum()
    return np.asarray(ratio + (numerator - ratio * denominator) / denominator.mean(), dtype=np.float64)


def effect(variant: Sample, control: Sample, *, anytime_effect: float = 0.02) -> Effect:
    """Compare a variant with the control.

    The uplift's variance is ``v_t / c**2 + t**2 v_c / c**4`` (delta method), with Welch's degrees of freedom.

    Args:
        variant: The variant's users.
        control: The control's users.
        anytime_effect: Size of the uplifts, at which the anytime-valid interval is tightest. Fix it before the test.

    Raises:
        ValueError: The KPI of the control is 0, so there is no relative uplift, or ``anytime_effect`` is not positive.
    """
    ours, theirs = cuped(variant, control)
    means, squares = zip(*((float(each.mean()), _squared_error(each)) for each in (ours, theirs)), strict=True)
    (t, c), (vt, vc) = means, squares
    if c == 0:
        raise ValueError("the KPI of the control is 0: there is no relative uplift")
    uplift, variance = t / c - 1, vt / c**2 + t**2 * vc / c**4
    freedom = _welch(vt, vc, len(ours), len(theirs))
    quantile, error = float(stats.t.ppf(1 - ALPHA / 2, freedom)), float(np.sqrt(variance))
    reach, at_any_time = quantile * float(np.sqrt(vt + vc)), anytime_reach(variance, anytime_effect)
    return Effect(
        control=c,
        variant=t,
        difference=t - c,
        difference_low=t - c - reach,
        difference_high=t - c + reach,
        uplift=uplift,
        low=uplift - quantile * error,
        high=uplift + quantile * error,
        p=_p(uplift, error, freedom),
        anytime_low=uplift - at_any_time,
        anytime_high=uplift + at_any_time,
        mde=detectable(vt + vc) / abs(c),
        n_control=len(theirs),
        n_variant=len(ours),
    )


def cuped(variant: Sample, control: Sample) -> tuple[Float64Array, Float64Array]:
    """Take off what the time before the test explains (Deng et al. 2013, "CUPED"); unchanged without such a time.

    The slope is pooled within the variants, so it does not depend on the effect: this is the analysis of covariance.

    Returns:
        float [U] of the variant and of the control.
    """
    if variant.before is None or control.before is None:
        return variant.values, control.values
    sides = (variant.values, variant.before), (control.values, control.before)
    spread = sum(float(np.square(before - before.mean()).sum()) for _, before in sides)
    if spread == 0:
        return variant.values, control.values
    shared = sum(float(((before - before.mean()) * values).sum()) for values, before in sides)
    centre = float(np.concatenate([variant.before, control.before]).mean())
    adjusted = [values - shared / spread * (before - centre) for values, before in sides]
    return adjusted[0], adjusted[1]


def anytime_reach(variance: float, scale: float) -> float:
    """Half the width of a 95 % interval that holds on all days together, however often one looks.

    The normal mixture: with V the variance of the estimate and s**2 that of the mixture,
    ``sqrt(V (V + s**2) / s**2 * log((V + s**2) / (V alpha**2)))`` (Johari, Pekelis, Walsh 2015, "Always Valid
    Inference", section 4.3; Howard et al. 2021, equation 14).

    Args:
        variance: V.
        scale: s, the uplift at which the interval is tightest.

    Raises:
        ValueError: ``scale`` is not positive.
    """
    if scale <= 0:
        raise ValueError(f"anytime_effect: expected a positive uplift, got {scale}")
    if variance == 0:
        return 0.0
    total = variance + scale**2
    return float(np.sqrt(variance * total / scale**2 * np.log(total / (variance * ALPHA**2))))


def detectable(variance: float, *, power: float = POWER) -> float:
    """Smallest difference that a two-sided test at 5 % finds with ``power``, from the variance of the difference."""
    return float((stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(power)) * np.sqrt(variance))


def power_of(difference: float, variance: float) -> float:
    """Chance that a two-sided test at 5 % finds ``difference``, from the variance of the estimated difference."""
    shift, limit = abs(difference) / np.sqrt(variance), stats.norm.ppf(1 - ALPHA / 2)
    return float(stats.norm.sf(limit - shift) + stats.norm.cdf(-limit - shift))


def planned_mde(users: Sample, *, share: float = 0.5) -> float:
    """Smallest relative uplift that a test of these users finds with a power of 80 %, before the test.

    Args:
        users: All users of the test, measured over a past time of the same length.
        share: Share of the users who get the variant.

    Raises:
        ValueError: ``share`` is not between 0 and 1, or the KPI is 0.
    """
    if not 0 < share < 1:
        raise ValueError(f"share of a variant: expected more than 0 and less than 1, got {share}")
    values, n = cuped(users, replace(users))[0], len(users.values)
    if values.mean() == 0:
        raise ValueError("the KPI is 0 for all users: no uplift can be planned")
    per_user = float(values.var(ddof=1))
    return detectable(per_user / (n * share) + per_user / (n * (1 - share))) / abs(float(values.mean()))


def srm_p(counts: Mapping[str, int], shares: Mapping[str, float]) -> float:
    """P of the sample ratio: whether users were assigned in the planned shares (chi-square).

    A p below :data:`SRM_ALPHA` says that the assignment or the logging is broken, and no uplift should be read.

    Args:
        counts: Users by variant.
        shares: Planned share by variant; the shares are divided by their sum.

    Raises:
        ValueError: The variants differ, or a share is not positive.
    """
    if counts.keys() != shares.keys() or min(shares.values(), default=0) <= 0:
        raise ValueError(f"shares: expected a positive one for each of {sorted(counts)}, got {dict(shares)}")
    total, whole = sum(counts.values()), sum(shares.values())
    expected = [total * shares[name] / whole for name in counts]
    return float(stats.chisquare(list(counts.values()), expected).pvalue)


def _squared_error(values: Float64Array) -> float:
    return float(values.var(ddof=1)) / len(values)


def _welch(vt: float, vc: float, n_variant: int, n_control: int) -> float:
    """Degrees of freedom of Welch and Satterthwaite."""
    parts = vt**2 / (n_variant - 1) + vc**2 / (n_control - 1)
    return (vt + vc) ** 2 / parts if parts else float(n_variant + n_control - 2)


def _p(uplift: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if uplift == 0 else 0.0
    return float(2 * stats.t.sf(abs(uplift) / error, freedom))
