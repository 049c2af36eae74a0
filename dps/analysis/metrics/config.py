"""Settings of `dps metrics`; light, so that bad ones are refused before any store is read."""

from __future__ import annotations

from dataclasses import dataclass

from dps.arguments import check_seed
from dps.errors import InputError


@dataclass(frozen=True)
class MetricsConfig:
    """`dps metrics`: tables per trajectory and per question, the predictor of samples to success, and pass@k."""

    output: str | None = None
    """Folder of the files; `metrics` in the run's own folder if not set, beside the first of several."""
    mcmc_policy: str = "power"
    """The policy of the columns mcmc_*, whose samples to success are counted."""
    series: bool = False
    """Also write every trajectory's values per token, as JSON lists in the table of trajectories."""
    trajectories_only: bool = False
    """Write only the table of trajectories, which needs neither gold answers nor a second trajectory."""
    folds: int = 5
    """Parts into which the questions are split to predict each from the others."""
    repeats: int = 10
    """Random splits, over which the predictor's errors are averaged."""
    bootstrap: int = 1000
    """Resamples of the questions behind the predictor's standard errors."""
    seed: int = 0
    """Decides splits and resamples."""

    def check(self) -> MetricsConfig:
        """Return self if usable, raise InputError otherwise."""
        for name, least in (("folds", 2), ("repeats", 1), ("bootstrap", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        check_seed(self.seed)
        if self.mcmc_policy in ("plain", "lowtemp"):
            raise InputError(
                f"mcmc_policy is {self.mcmc_policy}, which has columns of its own: name power or another policy with "
                "Metropolis-Hastings steps."
            )
        return self
