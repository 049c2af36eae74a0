"""Means over questions with standard errors, intervals and tests: the one place where uncertainty is computed.

Every number is one value for each question: the trajectories of one question are not independent of one another, and
questions are. An accuracy, or a difference of two, has known ends and an exact interval, see :func:`bounded`, which
does not collapse where no question differs. All other means have Student's interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite, log

import numpy as np

LEVEL = 0.95
"""Of all intervals; a claim in one direction has half of what is left as its error, 2.5 %."""
MARGIN = 0.01
"""Accuracy that counts as no loss where nothing else is said: one point."""
FEWEST, LARGEST_STDERR = 100, 0.02
"""With fewer questions, or a larger standard error of an accuracy difference, nothing is said of "as good as"."""

ERROR = (1 - LEVEL) / 2
"""Of a claim in one direction."""
_POWER = 7.85
"""(z of 97.5 % + z of 80 %)^2: a difference of this many squared standard errors is seen in 80 % of cases."""
_ROUNDING = 1e-9  # means that are equal on paper, and bounds that are met exactly
_NODES = np.linspace(0.0, 8.0, 161)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions with its standard error and its 95 % interval."""

    value: float
    """The mean; NaN over no question."""
    stderr: float
    """Its standard error; NaN for fewer than two questions."""
    num_questions: int
    """How many questions it is over."""
    low: float = field(default=float("nan"), compare=False)
    """Lower end of the 95 % interval, Student's if none is given. NaN for fewer than two questions, and without spread:
    a few values that happen to agree do not say how far others may lie."""
    high: float = field(default=float("nan"), compare=False)
    """Upper end."""

    def __post_init__(self) -> None:
        """Take Student's interval where none was given."""
        if np.isnan(self.low) and self.num_questions > 1 and self.stderr > 0:
            from scipy.special import stdtrit

            half = float(stdtrit(self.num_questions - 1, 1 - ERROR)) * self.stderr
            object.__setattr__(self, "low", self.value - half)
            object.__setattr__(self, "high", self.value + half)

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies above or below 0, else 0."""
        return 1 if self.low > _ROUNDING else -1 if self.high < -_ROUNDING else 0

    def plain(self) -> dict[str, float]:
        """Return value and interval as JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def estimate(values: np.ndarray) -> Estimate:
    """Return the mean of one value per question (N,), NaN left out, with its standard error and Student's interval."""
    known, mean, stderr = _moments(values)
    return Estimate(mean, stderr, len(known))


def bounded(values: np.ndarray, least: float = -1.0, most: float = 1.0) -> Estimate:
    """Return a mean of values between known ends with an exact 95 % interval; NaN is left out.

    The lower end m has ``P(sum w_i x_i <= m) = 2.5 %``, where the x_i are the N values and, once, the least value that
    there can be, and the weights w are uniform over all that sum to 1. The upper end likewise with the largest. Where
    the values are 0 and 1 this is the interval of Clopper and Pearson; where they are differences of two right or wrong
    answers it leaves 0 out exactly where the exact McNemar test has p < 5 %. For values between, as means over orders,
    no case is known in which it misses more often than it says.

    Source:
        Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
        variable"; Learned-Miller & Thomas 2020, arXiv 1905.06208.
    """
    known, mean, stderr = _moments(values)
    if not len(known):
        return Estimate(mean, stderr, 0)
    low, high = _lower_end(known, least), -_lower_end(-known, -most)
    return Estimate(mean, stderr, len(known), low, high)


def loss_is_below(differences: np.ndarray, margin: float, error: float = ERROR) -> bool:
    """Return whether accuracy differences (N,) show that less than ``margin`` is lost, with at most such an ``error``.

    Each is a question's accuracy minus that of the comparison, in [-1, 1]. The same as a lower end of :func:`bounded`
    of at least ``-margin``, in less time.
    """
    values, counts = _with_end(differences, -1.0)
    return _chance_below(values, counts, -margin) <= error * (1 + 1e-6)


def smallest_margin(num_questions: int, error: float = ERROR) -> float:
    """Return the smallest loss that N questions of which none loses can exclude: ``(1 - margin)^N = error``."""
    return 1 - error ** (1 / num_questions)


def fewest_questions(margin: float) -> int | None:
    """Return the smallest number of questions that can exclude a loss of ``margin``; None for a margin of 0."""
    return ceil(log(ERROR) / log(1 - margin)) if margin > 0 else None


def needed(difference: float, stderr: float, num_questions: int) -> int | None:
    """Return how many questions would show a mean difference of this size in 80 % of cases, if it is real.

    ``7.85 s^2 / difference^2``, two-sided at 5 %, from its standard error over so many questions; None where the
    difference or its spread is 0.
    """
    if not abs(difference) > _ROUNDING or not stderr > 0:
        return None
    count = _POWER * num_questions * (stderr / difference) ** 2
    return ceil(count) if isfinite(count) and count < 1e9 else None


def paired(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Return the accuracy difference ``one - other`` of two policies by question, shape (Q,), see :func:`bounded`."""
    return bounded(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """Return the ratio of two means over the same questions, its standard error by the delta method.

    ``r = mean(a) / mean(b)``; the standard error is that of the mean of ``(a - r b) / mean(b)``.
    """
    scale = float(denominator.mean())
    value = float(numerator.mean()) / scale
    return Estimate(value, estimate((numerator - value * denominator) / scale).stderr, len(numerator))


# -- resampling, where a curve is drawn through the means or the number is no mean ------------------------------------


def resamples(num_questions: int, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Return bootstrap weights of questions, each row a resample that sums to 1: shape (count, num_questions).

    A mean over questions is on every resample a product with these; the same for all policies makes differences paired.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=count) / num_questions


def resampled(value: float, replicates: np.ndarray, num_questions: int) -> Estimate:
    """Return a number with the standard deviation and percentile interval of its replicates (R,); NaN is left out."""
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < 2:
        return Estimate(float(value), float("nan"), num_questions)
    low, high = np.percentile(defined, [100 * ERROR, 100 - 100 * ERROR])
    return Estimate(float(value), float(defined.std(ddof=1)), num_questions, float(low), float(high))


def widened(value: float, replicates: np.ndarray, num_questions: int) -> Estimate:
    """Return an accuracy difference with the interval of its replicates (R,), kept from collapsing.

    Every replicate is a mean over the questions and, with the weight of one among N + 1, of the least difference that
    there can be for the lower end, and of the largest for the upper end. So a few questions that agree decide nothing;
    :func:`bounded` is the same where no curve has to be drawn through the replicates.
    """
    # The weight of the added question in each resample: the same law as that of any of N + 1.
    levels = (np.arange(len(replicates)) + 0.5) / len(replicates)
    weight = 1 - (1 - np.random.default_rng(0).permutation(levels)) ** (1 / num_questions)
    least, most = (resampled(value, (1 - weight) * replicates + weight * end, num_questions) for end in (-1.0, 1.0))
    return Estimate(
        float(value), resampled(value, replicates, num_questions).stderr, num_questions, least.low, most.high
    )


def simultaneous(values: Sequence[float], replicates: np.ndarray) -> list[tuple[float, float]]:
    """Return intervals that hold together in 95 % of cases, so that the worst of J numbers may be picked out.

    All have the same half width in standard errors: the 95 % point, over the replicates (R, J), of the largest
    deviation among them.
    """
    centre = np.asarray(values)
    spread = replicates.std(axis=0, ddof=1)
    deviation = np.abs(replicates - replicates.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    half = np.quantile(deviation.max(axis=1), LEVEL) * spread
    return list(zip((centre - half).tolist(), (centre + half).tolist(), strict=True))


# -- probabilities -----------------------------------------------------------------------------------------------------


def quantile_bins(values: np.ndarray, bins: int = 10) -> np.ndarray:
    """Return the bin of each value: shape (N,), int64, from 0 without gaps.

    Bins have equally many values but where many are the same: probabilities crowd together where decisions fall, and
    bins of equal width would put most of them into one.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="higher"))
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1].reshape(-1)


def brier_skill(probability: np.ndarray, truth: np.ndarray, baseline: np.ndarray) -> Estimate | None:
    """Return the share of a baseline's Brier score that probabilities take away: 1 is perfect, 0 is the baseline.

    All three have shape (Q, R), R rows of each question; ``truth`` says whether the label holds. None where the
    baseline makes no error or there are fewer than two questions.
    """
    ours, theirs = (((p - truth) ** 2).mean(axis=1) for p in (probability, baseline))
    if len(ours) < 2 or theirs.mean() <= 1e-12:
        return None
    if np.allclose(ours, theirs, rtol=1e-12, atol=1e-12):  # the baseline itself
        return Estimate(0.0, 0.0, len(ours), 0.0, 0.0)
    return ratio(theirs - ours, theirs)


# -- parts of the above ------------------------------------------------------------------------------------------------


def _moments(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the known values, their mean and its standard error."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return known, float("nan"), float("nan")
    if len(known) == 1:
        return known, float(known[0]), float("nan")
    stderr = float(known.std(ddof=1) / np.sqrt(len(known)))
    # What rounding leaves of values that are all the same is no spread.
    return known, float(known.mean()), stderr if stderr > 1e-14 * float(np.abs(known).max()) else 0.0


def _with_end(values: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values, with ``end`` once more, and how often each occurs."""
    distinct, counts = np.unique(np.append(np.round(values, 12), end), return_counts=True)
    return distinct, counts.astype(np.float64)


def _lower_end(values: np.ndarray, least: float) -> float:
    """Return the lower end of :func:`bounded`."""
    from scipy.optimize import brentq

    distinct, counts = _with_end(values, least)
    if len(distinct) == 1:
        return float(least)
    return float(brentq(lambda at: _chance_below(distinct, counts, at) - ERROR, distinct[0], distinct[-1], xtol=1e-9))


def _chance_below(values: np.ndarray, counts: np.ndarray, at: float) -> float:
    """Return the chance that a mean of distinct, increasing values (U,) with uniform weights is at most ``at``.

    The weights are independent exponentials over their sum, so this is ``P(S <= 0)`` for ``S = sum of E_i (x_i - at)``.
    Its moment generating function is ``M(z) = prod (1 - z a_i)^(-n_i)`` for ``a = x - at``; the chance of being on
    either side of 0 is the integral of ``M(z) / z``, but for its sign, along a line through the saddle point there.
    """
    from scipy.optimize import brentq

    a = values - at
    if a[0] >= 0:
        return 0.0
    if a[-1] <= 0:
        return 1.0
    ends = (1 - 1e-9) / a[0], (1 - 1e-9) / a[-1]
    saddle = brentq(lambda s: float((counts * a / (1 - s * a)).sum()), *ends, xtol=1e-12 * (ends[1] - ends[0]))
    # The line passes the pole at 0 on one side or the other; how far from it is a matter of accuracy only.
    near = 0.5 * min(1 / np.sqrt(float((counts * a * a).sum())), -ends[0], ends[1])
    line = saddle if abs(saddle) > near else -near
    side = np.sign(line)
    scale = 1 / np.sqrt(float((counts * (a / (1 - line * a)) ** 2).sum()))
    z = line + 1j * scale * np.sinh(_NODES)
    heights = np.exp(-(counts * np.log(1 - z[:, None] * a)).sum(axis=1) - np.log(side * z)).real * np.cosh(_NODES)
    outside = float(np.trapezoid(heights, _NODES) * scale / np.pi)
    return outside if side < 0 else 1 - outside
