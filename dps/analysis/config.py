"""Settings of ``dps replay``, ``recommend`` and ``metrics``; light, so that bad ones are refused at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from dps.arguments import check_margin, check_seed
from dps.decide.ladder import Ladder, Rung
from dps.errors import InputError


@dataclass(frozen=True)
class ReplayConfig:
    """`dps replay`: run every policy over stored trajectories and compare them."""

    ladders: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Ladders over the harvest's arms, by name, such as {cheap: [plain 2, plain 2], mixed: [plain 4, power 2]}; the
    first is what the result is about. If not set: those of the controllers, the harvest's own, the same without power
    sampling, and for every arm one that doubles its responses and one that adds them one at a time. Controllers climb
    the ladder that they know."""
    reference: str = ""
    """What all is compared with: a fixed budget, an arm (or ladder) and a number, for instance "lowtemp 16". If not
    set: the end of the first ladder; of several arms, the most accurate of their numbers at that end."""
    controllers: dict[str, str] = field(default_factory=dict)
    """Name of each controller and where its probabilities come from: the folder of `dps crossval` on this store (out of
    fold), or a checkpoint, run folder or controller folder that was trained on other questions."""
    orders: int = 32
    """Orders of each arm's exchangeable responses that everything is averaged over; the first is the natural one.
    Out-of-fold probabilities bring their own."""
    margin: float = 0.01
    """Loss of accuracy against the reference that a threshold has to exclude, by the lower end of an exact paired 95 %
    interval on other questions than those it is used on; against the ladder's end, where that does not exclude it."""
    folds: int = 5
    """Folds of questions for choosing thresholds."""
    resamples: int = 2000
    """Bootstrap resamples of questions."""
    seed: int = 0
    """Of orders, folds, resamples and the rule that escalates by chance."""
    show_questions: int | None = None
    """Questions that the report shows with their trajectories, evenly over difficulty; 200 if not set, none (0) of a
    benchmark whose authors ask that its questions are not shown online (GPQA)."""
    output: str = "runs/replay"
    """Folder of replay.json, replay.csv, outcomes.npz and the report: replay.html, replay.png, replay.svg."""
    title: str | None = None
    """Title of the report."""

    def check(self) -> ReplayConfig:
        """Return self if usable, raise InputError otherwise."""
        check_seed(self.seed)
        if self.orders < 1 or self.folds < 2 or self.resamples < 100:
            raise InputError(
                f"Expected orders of at least 1, folds of at least 2 and resamples of at least 100, got {self.orders}, "
                f"{self.folds} and {self.resamples}."
            )
        check_margin(self.margin)
        if self.show_questions is not None and self.show_questions < 0:
            raise InputError(f"Expected show_questions of at least 0, got {self.show_questions}.")
        for name, rungs in self.ladders.items():
            if len(Ladder.parse(rungs).rungs) < 2:
                raise InputError(
                    f"ladders.{name} is {list(rungs)}, on which nobody is asked: give it two rungs or more, for "
                    "instance [plain 2, plain 2]."
                )
        if self.reference:
            Rung.parse(self.reference)
        return self


@dataclass(frozen=True)
class RecommendConfig:
    """`dps recommend`: choose a policy among all that a replay has compared, and write it as a file to run."""

    target: str = ""
    """The fixed budget whose accuracy is to be kept, less `margin`, at the fewest tokens: an arm and a number such as
    `plain 32`; the replay's reference if not set."""
    budget: float | None = None
    """At most so many tokens a question, on average: then the most accurate policy is chosen, and only compared with
    the target."""
    margin: float = 0.01
    """Accuracy that counts as no loss."""
    controllers: dict[str, str] = field(default_factory=dict)
    """Name of each controller in the replay and the folder of `dps ship` (or `dps fit`) that holds it, trained on all
    questions: what is run where the choice is a controller that was cross-validated."""
    output: str | None = None
    """Folder of policy.yaml and recommendation.json; the replay's own if not set."""
    seed: int = 0
    """Of the bootstrap behind the comparison of power sampling with cheaper sampling."""

    def check(self) -> RecommendConfig:
        """Return self if usable, raise InputError otherwise."""
        check_seed(self.seed)
        check_margin(self.margin)
        if self.budget is not None and not self.budget > 0:
            raise InputError(f"Expected a budget above 0 tokens a question, got {self.budget:g}.")
        if self.target:
            Rung.parse(self.target)
        return self


@dataclass(frozen=True)
class MetricsConfig:
    """`dps metrics`: tables per trajectory and per question, the predictor of samples to success, and pass@k."""

    output: str | None = None
    """Folder of the files; `metrics` in the run's own folder if not set, beside the first of several."""
    mcmc_policy: str = "power"
    """The policy of the columns mcmc_*, whose samples to success are counted; of a store of several arms, an arm."""
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
