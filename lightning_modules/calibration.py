"""Calibration of probabilities: makes p_enough mean what it says, on questions that trained nothing.

``controllers.base`` fits one after every epoch, on logits of the calibration split; ``estimators`` puts every
prediction through it. (The calibrated *clock* of METHOD section 5 is another thing.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

Method = Literal["none", "temperature"]
METHODS: tuple[str, ...] = get_args(Method)

_SHARPEST = 20.0
"""Logits are multiplied by 1 / 20 to 20 when a temperature is fitted."""

_PRIOR_QUESTIONS = 10
"""A temperature is fitted as if so many questions more had been seen, for which the network is right: a few questions
that all agree must not make it certain of everything."""

_UNCORRECTED_QUESTIONS = 30
"""A correction is weighed as if so many questions more had been seen, for which the network is right without it."""


class Calibrator(nn.Module):
    """Turns logits into probabilities; the sigmoid until it is fitted."""

    def __init__(self) -> None:
        """Start as the sigmoid."""
        super().__init__()
        self.method = "none"
        self.inverse_temperature = 1.0

    def fit(self, method: str, logits: np.ndarray, labels: np.ndarray, num_questions: int) -> None:
        """Fit to rows that trained nothing; logits (N,), float64, and labels (N,), bool, of some questions."""
        if method not in METHODS:
            raise ValueError(f"expected a calibration among {', '.join(METHODS)}, got {method!r}")
        self.method = method
        if method == "temperature":
            self.inverse_temperature = fit_temperature(logits, labels, num_questions)

    def forward(self, logits: Tensor) -> Tensor:
        """Return probabilities of logits: both shape (N,), float64."""
        return (logits * self.inverse_temperature).sigmoid()

    def get_extra_state(self) -> dict[str, Any]:
        """Return everything that was fitted, as plain values."""
        return {"method": self.method, "inverse_temperature": self.inverse_temperature}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what was fitted."""
        self.method = state["method"]
        self.inverse_temperature = state["inverse_temperature"]


def fit_temperature(logits: np.ndarray, labels: np.ndarray, num_questions: int) -> float:
    """Return 1 / T that minimizes the mean cross-entropy of ``sigmoid(z / T)`` and the labels y, with a prior.

    The prior is worth ten questions with the same logits and the labels that ``sigmoid(z)`` expects. So y becomes
    ``y' = (Q y + 10 sigmoid(z)) / (Q + 10)``; the loss is convex in ``1 / T``, and its derivative
    ``mean((sigmoid(z / T) - y') z)`` changes sign once.

    Returns:
        In [1 / 20, 20].
    """
    from scipy.special import expit

    prior = _PRIOR_QUESTIONS / (num_questions + _PRIOR_QUESTIONS)
    wanted = (1 - prior) * labels + prior * expit(logits)

    def slope(sharpness: float) -> float:
        return float(np.mean((expit(sharpness * logits) - wanted) * logits))

    return _least(slope, 1 / _SHARPEST, _SHARPEST)


def fit_weight(own: np.ndarray, correction: np.ndarray, labels: np.ndarray, num_questions: int) -> float:
    """Return w in [0, 1] that minimizes the mean cross-entropy of ``sigmoid(own + w correction)`` and the labels.

    As if thirty questions more had been seen for which ``own`` alone is right: a correction has to show on held-out
    questions that it is one. The loss is convex in w. Logits and labels have shape (N,).
    """
    from scipy.special import expit

    prior = _UNCORRECTED_QUESTIONS / (num_questions + _UNCORRECTED_QUESTIONS)
    wanted = (1 - prior) * labels + prior * expit(own)

    def slope(weight: float) -> float:
        return float(np.mean((expit(own + weight * correction) - wanted) * correction))

    return _least(slope, 0.0, 1.0)


def _least(slope: Callable[[float], float], low: float, high: float) -> float:
    """Return where a convex function with this slope is least between two ends."""
    from scipy.optimize import brentq

    if slope(low) >= 0:
        return low
    return high if slope(high) <= 0 else float(brentq(slope, low, high, xtol=1e-12))
