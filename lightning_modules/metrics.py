"""How good probabilities are: measured with scikit-learn, with errors that keep the rows of a question together.

``controllers.base`` measures a test, ``crossval`` out-of-fold predictions; both are compared with what k and the
question's length say by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dps.decide.labels import VALUE, continue_score
from dps.decide.orders import at_stop
from dps.decide.table import Table
from dps.decide.thresholds import Replay, replay, stops
from dps.estimates import Estimate, bounded, brier_skill, quantile_bins, resampled, resamples

REPORT, REPORT_VERSION = "crossval.json", 1
"""What ``dps crossval`` writes, and its ``format_version``."""
NUM_DRAWS = 400
"""Bootstrap draws of questions."""
METRICS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "brier_skill": "Brier skill",
    "calibration_error": "calibration error",
    "log_loss": "log loss",
}
"""What :func:`measure_probabilities` measures, in words."""
RANKINGS = ("auroc", "average_precision")
"""Those that hold of any score, the label ``value``'s too, which is no probability."""
_AGAINST = {"k": "k alone", "length": "k and the length of the question"}
"""What a controller has to be better than, in words; see :func:`skills`."""


def plain(estimate: Estimate) -> dict[str, float | None]:
    """Return an estimate as JSON values, which have no NaN."""
    values = {name: getattr(estimate, name) for name in ("value", "stderr", "low", "high")}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A number of some questions with its bootstrap over them."""

    value: float
    """On the questions themselves; NaN where it is not defined, as a ranking of one class."""
    draws: np.ndarray
    """On each draw: shape (D,)."""
    num_questions: int
    """How many there are."""

    def minus(self, other: Measured) -> Measured:
        """Return the difference, paired draw by draw."""
        return Measured(self.value - other.value, self.draws - other.draws, self.num_questions)

    def estimate(self) -> Estimate:
        """Return the number with its standard error and interval."""
        return resampled(self.value, self.draws, self.num_questions)


def measure_probabilities(p: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Measured]:
    """Measure probabilities of rows, with a bootstrap over questions.

    Args:
        p: Shape (Q, R): R rows of each question.
        labels: Shape (Q, R), bool.
        weights: Of the questions in each draw, shape (D, Q), see :func:`dps.estimates.resamples`.

    Returns:
        ``auroc``; ``average_precision``; ``brier``, the mean of ``(p - label)^2``; ``brier_skill``, the share of the
        Brier score of always saying the label's share that is taken away; ``calibration_error``, over ten bins of
        equally many rows the mean of ``|mean p - share|``; ``log_loss`` in nats, with p kept 1e-6 away from 0 and 1.
        What a single class does not define is NaN.
    """
    every = np.concatenate([np.full((1, len(p)), 1 / len(p)), weights])
    clipped, (count, rows) = p.clip(1e-6, 1 - 1e-6), p.shape
    share = every @ labels.mean(axis=1)
    brier = every @ ((p - labels) ** 2).mean(axis=1)
    losses = every @ -np.log(np.where(labels, clipped, 1 - clipped)).mean(axis=1)
    bins = quantile_bins(p.reshape(-1)).reshape(p.shape)
    place = np.arange(count)[:, None] * (bins.max() + 1) + bins
    missed = np.bincount(place.reshape(-1), (p - labels).reshape(-1), count * (bins.max() + 1)).reshape(count, -1)
    error = np.abs(every @ missed / rows).sum(axis=1)
    varies = (share > 1e-12) & (share < 1 - 1e-12)
    skill = 1 - brier / np.where(varies, share * (1 - share), np.nan)
    rankings = np.full((len(every), 2), np.nan)
    by_row = (np.repeat(weight / rows, rows) for weight in every[varies])
    rankings[varies] = list(rankings_of(p.reshape(-1), labels.reshape(-1), by_row)) or np.zeros((0, 2))
    columns = (*rankings.T, brier, skill, error, losses)
    return {name: Measured(float(column[0]), column[1:], count) for name, column in zip(METRICS, columns, strict=True)}


def rankings_of(p: np.ndarray, labels: np.ndarray, weights: Iterable[np.ndarray]) -> Iterator[tuple[float, float]]:
    """Yield AUROC and average precision of rows with both classes for each of some weights; all of shape (N,).

    Rows are sorted once for all of them, which scikit-learn's functions do for each.
    """
    order = np.argsort(-p, kind="stable")
    last = np.flatnonzero(np.diff(p[order], append=np.inf))  # of rows that have the same p
    positive = labels[order]
    for weight in weights:
        ordered = weight[order]
        right = np.concatenate([[0.0], np.cumsum(ordered * positive)[last]])
        wrong = np.concatenate([[0.0], np.cumsum(ordered * ~positive)[last]])
        area = np.diff(wrong) @ (right[1:] + right[:-1]) / 2
        precision = right[1:] / np.maximum(right[1:] + wrong[1:], 1e-300)
        yield float(area / (right[-1] * wrong[-1])), float(np.diff(right) @ precision / right[-1])


def ranking(p: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return AUROC and average precision of rows with both classes; shapes (N,)."""
    return next(rankings_of(p, labels, [np.ones(len(p))]))


def length_probabilities(lengths: np.ndarray, shares: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the probability of the label by a logistic regression on the question's length alone: shape (Q,).

    It is fitted on lengths (M,) and the shares (M,) of their rows with the label; ``others`` are the lengths (Q,). A
    ridge of 1e-4 on the mean cross-entropy keeps the fit finite where length separates the classes.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale = lengths.mean(), lengths.std() or 1.0
    standard = (lengths - mean)[:, None] / scale
    weights = shares.clip(1e-6, 1 - 1e-6)
    fit = LogisticRegression(C=1e4 / len(lengths), tol=1e-8, max_iter=1000).fit(
        np.concatenate([standard, standard]),
        np.repeat([True, False], len(lengths)),
        sample_weight=np.concatenate([weights, 1 - weights]),
    )
    return fit.predict_proba((others - mean)[:, None] / scale)[:, 1]


def baselines(labels: np.ndarray, lengths: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Return the probability of the label by k alone (``k``), and by k and question length (``length``): (Q, C) each.

    They are fitted on the labels (M, O, C) and lengths (M,) of some questions; ``others`` are the lengths (Q,) of the
    questions to predict.
    """
    shares = labels.mean(axis=1)
    by_length = [length_probabilities(lengths, column, others) for column in shares.T]
    return {"k": np.repeat(shares.mean(axis=0)[None], len(others), axis=0), "length": np.stack(by_length, axis=1)}


def skills(p: np.ndarray, labels: np.ndarray, others: Mapping[str, np.ndarray]) -> dict[str, dict[str, float] | None]:
    """Return the Brier skill, with its interval, of probabilities (Q, O, C) against :func:`baselines` (Q, C) each."""
    flat = [values.reshape(len(p), -1) for values in (p, labels)]
    estimates = {
        name: brier_skill(*flat, np.broadcast_to(other[:, None], p.shape).reshape(len(p), -1))
        for name, other in others.items()
    }
    return {
        name: None if e is None else {"value": e.value, "stderr": e.stderr, "low": e.low, "high": e.high}
        for name, e in estimates.items()
    }


def nothing_learnt(skill: Mapping[str, Mapping[str, float] | None] | None, num_questions: int) -> str | None:
    """Return a sentence where held-out questions do not show that a controller has learnt anything, else None.

    It has to be better than what k says by itself, and than k and the question's length together: each Brier skill, see
    :func:`skills`, with its 95 % interval above 0. ``skill`` is None where it was not measured.
    """
    unknown = "Whether it has learnt anything cannot be said: "
    for name, shown in (skill or {}).items():
        if shown is None:
            return f"{unknown}the label does not vary on {num_questions:,} held-out questions."
        if math.isnan(shown["low"]):
            return f"{unknown}{num_questions:,} held-out questions are too few for an interval."
        if not shown["low"] > 0:
            return (
                f"It may have learnt nothing: {num_questions:,} held-out questions do not show that its probabilities "
                f"are better than those by {_AGAINST[name]} (Brier skill {shown['value']:.3f} [{shown['low']:.3f}, "
                f"{shown['high']:.3f}]). A rule that needs no training may do as well."
            )
    return None


@dataclass(frozen=True, slots=True)
class TestResult:
    """A controller measured on questions that it has not seen."""

    __test__ = False  # the name begins with Test, but pytest has nothing to collect here

    name: str
    """The controller."""
    label: str
    """What it predicts."""
    metrics: dict[str, float]
    """Everything that is logged as ``test/...``."""
    policies: dict[str, Replay]
    """Fixed k's and the controller, replayed on the same questions."""


def measure_test(name: str, p: np.ndarray, threshold: float, label: str, table: Table, train: Table) -> TestResult:
    """Measure a controller's probabilities (Q, O, C) on a test table; the training split is for the baselines.

    Returns:
        Metrics ``auroc`` with ``auroc_stderr`` (bootstrap over questions), ``auroc_k2``, ... (rows of one k only, where
        knowing k does not help), ``auroc_length`` (question length alone), the replayed policy, and counts. Rankings of
        a single class are left out.
    """
    labels, trained = table.labels(label), train.labels(label)
    flat = labels.reshape(len(labels), -1)
    values = {
        "num_questions": len(labels),
        "num_rows": labels.size,
        "label_share": labels.mean(),
        "threshold": threshold,
    }
    measured = measure_probabilities(p.reshape(len(p), -1), flat, resamples(len(p), NUM_DRAWS, seed=0))
    values |= {metric: n.value for metric, n in measured.items() if label != VALUE or metric in RANKINGS}
    values["auroc_stderr"] = measured["auroc"].estimate().stderr
    columns = {f"auroc_k{k}": (p[..., c], labels[..., c]) for c, k in enumerate(table.ks[:-1])}
    by_length = length_probabilities(
        train.lengths.astype(float), trained.mean(axis=(1, 2)), table.lengths.astype(float)
    )
    columns["auroc_length"] = np.broadcast_to(by_length[:, None, None], labels.shape), labels
    for metric, (scores, truth) in columns.items():
        values[metric] = ranking(scores.reshape(-1), truth.reshape(-1))[0] if 0 < truth.mean() < 1 else math.nan
    others = {} if label == VALUE else baselines(trained, train.lengths, table.lengths)
    for against, shown in skills(p, labels, others).items():
        ends = {"": "value", "_low": "low", "_high": "high"} if shown is not None else {}
        values |= {f"skill_{against}{end}": shown[part] for end, part in ends.items()}
    policies = {
        f"fixed-k{k}": replay(np.full(labels.shape[:2], c), table.correct, table.tokens, table.ks)
        for c, k in enumerate(table.ks)
    }
    longest = policies[f"fixed-k{table.ks[-1]}"]
    stop = stops(continue_score(p), threshold)
    policies[name] = chosen = replay(stop, table.correct, table.tokens, table.ks)
    loss = bounded(at_stop(table.correct, stop).mean(axis=1) - table.correct[..., -1].mean(axis=1))
    values |= {
        "accuracy": chosen.accuracy,
        "accuracy_maximum": longest.accuracy,
        "tokens": chosen.tokens,
        "tokens_share": chosen.tokens / longest.tokens,
        "mean_k": chosen.mean_k,
        "accuracy_difference": loss.value,
        "accuracy_difference_low": loss.low,
        "accuracy_difference_high": loss.high,
    }
    defined = {metric: float(value) for metric, value in values.items() if not math.isnan(value)}
    return TestResult(name, label, defined, policies)


def show(result: TestResult, source: str) -> None:
    """Print a result as tables; ``source`` is where the questions come from."""
    values = result.metrics
    questions, rows = int(values["num_questions"]), int(values["num_rows"])
    print(f"{result.name} on the test questions of {source}: {questions} questions, {rows} rows")
    share = f"{result.label} holds in {values['label_share']:.1%} of the rows"
    if "auroc" in values:
        by_k = ", ".join(f"k = {n[7:]}: {v:.3f}" for n, v in values.items() if n.startswith("auroc_k"))
        lines = [("AUROC", values["auroc"], f"± {values['auroc_stderr']:.3f}, clustered by question; {by_k}")]
        lines += [("  question length alone", values["auroc_length"], "")]
        lines += [("average precision", values["average_precision"], share)]
    else:
        lines = [("AUROC", math.nan, f"one class only: {share}")]
    if "brier" in values:
        lines += [("Brier score", values["brier"], "")]
    for against, words in _AGAINST.items():
        if (skill := values.get(f"skill_{against}")) is not None:
            low, high = values.get(f"skill_{against}_low", math.nan), values.get(f"skill_{against}_high", math.nan)
            lines += [(f"  skill against {words}", skill, f"[{low:.3f}, {high:.3f}]")]
    if "calibration_error" in values:
        lines += [("calibration error", values["calibration_error"], "")]
    for title, value, remark in lines:
        print(f"{title:<48} {'–' if math.isnan(value) else f'{value:.3f}':>6}  {remark}".rstrip())
    print(f"{'policy (replayed)':<32} {'accuracy':>8} {'±':>6} {'tokens / question':>18} {'mean k':>7}")
    for name, policy in result.policies.items():
        title = f"{name}, threshold {values['threshold']:.3f}" if name == result.name else name
        print(
            f"{title:<32} {policy.accuracy:>8.1%} {policy.accuracy_stderr:>6.1%} {policy.tokens:>18,.0f} "
            f"{policy.mean_k:>7.2f}"
        )
    loss = [100 * values[f"accuracy_difference{end}"] for end in ("", "_low", "_high")]
    longest = max(int(name[7:]) for name in result.policies if name.startswith("fixed-k"))
    print(
        f"{result.name} minus k = {longest}: {loss[0]:+.1f} points [{loss[1]:+.1f}, {loss[2]:+.1f}], paired by question"
    )
