"""Settings of ``dps replay``; light, so that bad ones are refused before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from dps.arguments import check_seed
from dps.decide.policy import KRange
from dps.errors import InputError


@dataclass(frozen=True)
class ReplayConfig:
    """`dps replay`: run every policy over stored trajectories and compare them."""

    rivals: tuple[str, ...] = ()
    """Stores of other samplers on the same questions (the policies plain and lowtemp of an evaluation), or folders that
    hold them: fixed and adaptive self-consistency over them are compared at equal tokens."""
    controllers: dict[str, str] = field(default_factory=dict)
    """Name of each controller and where its probabilities come from: the folder of `dps crossval` on this store (out of
    fold), or a checkpoint, run folder or controller folder that was trained on other questions."""
    k: KRange | None = None
    """Where policies may stop; the harvest's own range if not set. Controllers must have been trained to be asked there
    (and may know more)."""
    orders: int = 32
    """Orders of the exchangeable trajectories that everything is averaged over; the first is the natural one. Out-of-
    fold probabilities bring their own."""
    margin: float = 0.01
    """Loss of accuracy against the largest k that a threshold has to exclude, by the lower end of an exact paired 95 %
    interval on other questions than those it is used on."""
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
    """Folder of replay.json, replay.csv and the report: replay.html, replay.png, replay.svg."""
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
        if not 0 <= self.margin < 1:
            raise InputError(f"Expected a margin of accuracy in [0, 1), for instance 0.01, got {self.margin:g}.")
        if self.show_questions is not None and self.show_questions < 0:
            raise InputError(f"Expected show_questions of at least 0, got {self.show_questions}.")
        if self.k is not None:
            self.k.check()
        return self
