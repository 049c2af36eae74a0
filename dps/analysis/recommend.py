"""``dps recommend``: which policy to use, of all that a replay has tried, under a target or a budget.

Choosing the best of many flatters what is chosen. So the choice is made once for each fold, on the questions of the
other folds, and measured on that fold: these numbers are of questions that chose nothing. What is recommended is the
choice on all questions, and how often the folds chose the same is said (METHOD section 7). Where a simpler policy does
as well for no more tokens, it is the choice.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dps import __version__
from dps.analysis.advice import enough, notes, sentences
from dps.analysis.config import RecommendConfig
from dps.analysis.outcomes import Outcomes, read_outcomes
from dps.analysis.words import plain
from dps.analysis.write import read_result
from dps.decide import RULES, Controller, Ladder, Policy
from dps.decide.files import controller_file
from dps.decide.policy_file import NAME, write_policy
from dps.decide.rules import LEADS
from dps.decide.splits import other_folds
from dps.decide.thresholds import cheapest_without_loss, effective_margin
from dps.errors import InputError
from dps.estimates import (
    ERROR,
    FEWEST,
    LARGEST_STDERR,
    Estimate,
    bounded,
    estimate,
    loss_is_below,
    needed,
    paired,
    ratio,
    resamples,
    simultaneous,
)
from dps.folders import claim, place_of
from dps.sampler.settings import SamplerConfig
from feature_store.files import replace_file

FILE, FORMAT_VERSION = "recommendation.json", 1
"""What a recommendation is called in its folder, and the version of the file."""
PRICES = 12
"""Budgets, evenly spread over log tokens, at which power sampling is compared with cheaper sampling."""
RESAMPLES = 2000
SAME_TOKENS = 0.01
"""Policies whose tokens differ by a smaller share are equally cheap: the simpler of them is taken."""
_KINDS = {"fixed": 0, "rule": 2, "controller": 3}
"""How simple a policy is; a rule with nothing to choose (``lead-2``) is 1."""

Choose = Callable[[np.ndarray], int]
"""Takes a point on some questions: a mask of shape (Q,)."""
Ship = Callable[[str, Path, float], Controller]
"""Writes a trained controller (its path) into a folder with a threshold, and loads it from there. Handed in by the
composition root."""


@dataclass(frozen=True, slots=True, eq=False)
class Policies:
    """The points of a replay, by policy and ladder; numbers in float64."""

    outcomes: Outcomes
    """What the replay wrote."""
    groups: tuple[np.ndarray, ...]
    """The points of each policy on each ladder, simple policies first."""
    correct: np.ndarray
    """Shape (P, Q)."""
    tokens: np.ndarray
    """Shape (P, Q)."""
    kinds: np.ndarray
    """0 of a fixed budget, 1 of a rule with nothing to choose, 2 of other rules, 3 of controllers: shape (P,)."""

    @classmethod
    def of(cls, outcomes: Outcomes) -> Policies:
        """Return the policies of a file of outcomes."""
        members: dict[tuple[str, ...], list[int]] = {}
        for point, one in enumerate(outcomes.settings):
            members.setdefault((one["family"], one["policy"], one["series"], one["aggregator"]), []).append(point)
        kinds = np.array([1 if one["policy"] in LEADS else _KINDS[one["family"]] for one in outcomes.settings])
        groups = sorted(map(np.array, members.values()), key=lambda points: kinds[points[0]])
        # Means over orders lie in single precision; equal ones are to be equal.
        numbers = (np.round(of.astype(np.float64), 6) for of in (outcomes.correct, outcomes.tokens))
        return cls(outcomes, tuple(groups), *numbers, kinds)

    @property
    def error(self) -> float:
        """The chance that a test may claim wrongly: the policies share 2.5 %, since the cheapest of them is chosen."""
        return ERROR / len(self.groups)

    def group_of(self, point: int) -> int:
        """Return the index of the group that holds a point."""
        return next(i for i, points in enumerate(self.groups) if point in points)

    def label(self, point: int) -> str:
        """Return what a point is called: ``lead-2 (lowtemp-ones)``; of a fixed budget its row: ``plain 16``.

        One that never draws from some of its ladder's arms is called by the arms that it draws from.
        """
        one = self.outcomes.settings[point]
        if one["family"] == "fixed":
            return self.outcomes.names[point]
        whole = {arm for of in self.outcomes.settings if of["series"] == one["series"] for arm in of["arms"]}
        return f"{one['policy']} ({one['series'] if whole == set(one['arms']) else '+'.join(one['arms'])})"

    def agree(self, one: int, other: int) -> bool:
        """Return whether two points are of one policy, or of two names that do the same on every question."""
        same = (np.array_equal(of[one], of[other]) for of in (self.correct, self.tokens))
        return self.label(one) == self.label(other) or all(same)

    def fixed(self) -> np.ndarray:
        """Return the points of fixed budgets, whatever becomes of their answers."""
        return np.array([i for i, one in enumerate(self.outcomes.settings) if one["family"] == "fixed"], dtype=int)


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What was chosen for each question on the questions of other folds."""

    points: np.ndarray
    """The point of each question: shape (Q,)."""
    correct: np.ndarray
    """What it gives there: shape (Q,)."""
    tokens: np.ndarray
    """Shape (Q,)."""

    def measured(self, reference: HeldOut) -> dict[str, Any]:
        """Return accuracy and tokens, and their difference and ratio to a reference, with intervals by question."""
        return {
            "num_questions": len(self.points),
            "accuracy": plain(bounded(self.correct, 0.0, 1.0)),
            "tokens": plain(estimate(self.tokens)),
            "tokens_ratio": plain(ratio(self.tokens, reference.tokens)),
            "difference": plain(difference(self.correct, reference.correct)),
        }


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What ``dps recommend`` found; ``result`` is ``recommendation.json`` but for its words."""

    point: int
    """The point that is recommended: the choice on all questions."""
    settings: dict[str, Any]
    """What it is, see :func:`dps.analysis.outcomes.settings_of`."""
    result: dict[str, Any] = field(default_factory=dict)
    """The numbers."""


def difference(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Return the paired difference of accuracies; exactly 0 with no error where both are one and the same."""
    return Estimate(0.0, 0.0, len(one), 0.0, 0.0) if np.array_equal(one, other) else paired(one, other)


def find_target(policies: Policies, name: str) -> int:
    """Return the point of a fixed budget such as ``plain 32``.

    Raises:
        InputError: If the replay has no such budget.
    """
    wanted, known, most = " ".join(name.split()), {}, {}
    for point, one in enumerate(policies.outcomes.settings):
        if one["policy"] == "fixed":
            known |= dict.fromkeys((policies.outcomes.names[point], f"{one['series']} {one['k']}"), point)
            most[one["series"]] = max(most.get(one["series"], 0), one["k"])
    if wanted not in known:
        budgets = ", ".join(f"{series} up to {k}" for series, k in most.items())
        raise InputError(f"Expected a target that the replay has as a fixed budget ({budgets}), got {name!r}.")
    return known[wanted]


def at_least(policies: Policies, target: int, margin: float, groups: Sequence[np.ndarray]) -> Choose:
    """Return the choice of the cheapest point that shows a loss of less than ``margin`` against ``target``.

    Within each group the points are tested in a fixed sequence, see
    :func:`dps.decide.thresholds.cheapest_without_loss`, at :attr:`Policies.error`; the cheapest of the groups' choices
    is taken. Where no group has one, that is the target itself. A simpler policy takes its place that is at least as
    accurate as the choice, spends at most :data:`SAME_TOKENS` more, and itself shows no larger loss against the target.
    """

    def choose(rows: np.ndarray) -> int:
        passed = [point for points in groups if (point := passing(policies, target, margin, points, rows)) is not None]
        best = passed[int(policies.tokens[passed][:, rows].mean(axis=1).argmin())] if passed else target
        points = np.concatenate(list(groups))
        fits = partial(passing, policies, target, margin, rows=rows)
        return simplest(policies, best, points, rows, 0.0, SAME_TOKENS, lambda point: fits(point) is not None)

    return choose


def passing(policies: Policies, target: int, margin: float, points: np.ndarray, rows: np.ndarray) -> int | None:
    """Return the choice within one group; None where even its dearest point may lose too much."""
    losses = policies.correct[points][:, rows] - policies.correct[target, rows]
    excluded = effective_margin(int(rows.sum()), margin, policies.error)
    chosen = cheapest_without_loss(losses, policies.tokens[points][:, rows], excluded, policies.error)
    return None if chosen is None else int(points[chosen])


def at_most(policies: Policies, budget: float, groups: Sequence[np.ndarray]) -> Choose:
    """Return the choice of the most accurate point of at most ``budget`` tokens a question on average.

    The best of hundreds is a lucky one. So a simpler policy takes its place whose accuracy is within one standard error
    of their paired difference. Where no point costs so little on some questions, the cheapest one is taken.
    """
    points = np.concatenate(list(groups))

    def choose(rows: np.ndarray) -> int:
        tokens = policies.tokens[points][:, rows].mean(axis=1)
        if not (tokens <= budget).any():
            return int(points[tokens.argmin()])
        best = most_accurate(policies, points[tokens <= budget], rows)
        return simplest(policies, best, points, rows, 1.0)

    return choose


def most_accurate(policies: Policies, points: np.ndarray, rows: np.ndarray) -> int:
    """Return which of some points is right most often on some questions; of equals the cheapest, then the first."""
    accuracy, tokens = (of[points][:, rows].mean(axis=1) for of in (policies.correct, policies.tokens))
    return int(points[np.lexsort((tokens, -np.round(accuracy, 9)))[0]])


def simplest(
    policies: Policies,
    best: int,
    points: np.ndarray,
    rows: np.ndarray,
    errors: float,
    dearer: float = 0.0,
    fits: Callable[[np.ndarray], bool] = lambda _: True,
) -> int:
    """Return what to use in place of the ``best`` point: the simplest that does as well for about no more tokens.

    A fixed budget is simpler than a rule with nothing to choose, that than other rules, these than controllers. As well
    is an accuracy at most so many standard errors (of the paired difference on these questions) lower, of a point that
    ``fits``, alone in an array, and that spends at most the share ``dearer`` more. Of equally simple points the most
    accurate is taken.

    Source:
        Breiman et al. 1984, "Classification and Regression Trees", section 3.4.3 (the one-standard-error rule).
    """
    spent = policies.tokens[:, rows].mean(axis=1)
    simpler = points[
        (policies.kinds[points] < policies.kinds[best]) & (spent[points] <= spent[best] * (1 + dearer) + 1e-6)
    ]
    losses = policies.correct[best, rows] - policies.correct[simpler][:, rows]
    allowed = errors * losses.std(axis=1) / np.sqrt(losses.shape[1])
    simpler = simpler[losses.mean(axis=1) <= allowed + 1e-9]
    simpler = simpler[[fits(point) for point in simpler[:, None]]] if len(simpler) else simpler
    if not len(simpler):
        return best
    return most_accurate(policies, simpler[policies.kinds[simpler] == policies.kinds[simpler].min()], rows)


def held_out(policies: Policies, choose: Choose) -> HeldOut:
    """Return what a choice gives for each question when the questions of the other folds make it."""
    chosen = np.empty(len(policies.outcomes.question_ids), dtype=int)
    for mine, others in other_folds(policies.outcomes.fold):
        chosen[mine] = choose(others)
    return at(policies, chosen)


def at(policies: Policies, points: np.ndarray | int) -> HeldOut:
    """Return what points (Q,), or one for all questions, give."""
    every = np.arange(len(policies.outcomes.question_ids))
    points = np.broadcast_to(points, len(every))
    return HeldOut(points, policies.correct[points, every], policies.tokens[points, every])


def recommend(
    outcomes: Outcomes,
    target: str,
    *,
    budget: float | None = None,
    margin: float = 0.01,
    with_steps: frozenset[str] = frozenset(),
    seed: int = 0,
) -> Recommendation:
    """Choose a policy and measure the choice on questions that did not make it.

    Args:
        outcomes: Every point of every policy of a replay.
        target: The fixed budget that everything is compared with, for instance ``plain 32``.
        budget: At most so many tokens a question, on average; then the most accurate policy is chosen. If None, the
            cheapest whose accuracy is at least the target's, less the margin.
        margin: Accuracy that counts as no loss.
        with_steps: Arms of power sampling.
        seed: Of the bootstrap behind the intervals that hold for all budgets together.

    Raises:
        InputError: If there is no such target, or no policy costs so little.
    """
    policies = Policies.of(outcomes)
    reference = find_target(policies, target)
    everything = np.ones(len(outcomes.question_ids), dtype=bool)
    cheapest = float(policies.tokens.mean(axis=1).min())
    if budget is not None and not budget >= cheapest:
        raise InputError(
            f"Expected a budget that a policy keeps, got {budget:g} tokens a question, but the cheapest spends "
            f"{cheapest:,.0f}: raise it."
        )

    def rule(groups: Sequence[np.ndarray]) -> Choose:
        if budget is not None:
            return at_most(policies, budget, groups)
        return at_least(policies, reference, margin, groups)

    choose = rule(policies.groups)
    point = choose(everything)
    chosen, beside = held_out(policies, choose), at(policies, reference)
    measured = chosen.measured(beside)
    apart = difference(chosen.correct, beside.correct)
    folds = [int(chosen.points[outcomes.fold == fold][0]) for fold in np.unique(outcomes.fold)]
    result = {
        "too_few": len(everything) < FEWEST or (apart.stderr > LARGEST_STDERR and apart.sign == 0),
        "target": {
            "name": policies.label(reference),
            "ladder": outcomes.settings[reference]["ladder"],
            "margin": margin,
            **_of(beside),
        },
        "budget": budget,
        "measured": measured | {"no_loss": loss_is_below(chosen.correct - beside.correct, margin)},
        "excludable": effective_margin(
            int(everything.sum() - np.bincount(outcomes.fold).max()), margin, policies.error
        ),
        "in_sample": {name: value["value"] for name, value in _of(at(policies, point)).items()},
        "folds": [_told(policies, one) for one in folds],
        "num_folds_agree": sum(policies.agree(one, point) for one in folds),
        "beside": _beside(policies, chosen, reference, margin, is_fixed=outcomes.settings[point]["family"] == "fixed"),
        "next_best": _next_best(policies, point, rule, reference, budget, margin),
        "power": _power(policies, with_steps, seed),
        "tried": {"policies": len(policies.groups), "points": len(outcomes.names)},
    }
    return Recommendation(point, outcomes.settings[point], {"policy": _told(policies, point), **result})


def run_recommend(folder: Path, config: RecommendConfig, ship: Ship) -> dict[str, Any]:
    """Choose a policy of the replay in a folder; write ``policy.yaml`` and ``recommendation.json``, return the latter.

    Raises:
        InputError: If the folder holds no replay, or the settings do not fit.
    """
    outcomes, replay = read_outcomes(folder), read_result(folder, "replay")
    arms = _arms(replay, folder)
    known = {one["policy"] for one in outcomes.settings if one["family"] == "controller"}
    if unknown := [name for name in config.controllers if name not in known]:
        raise InputError(
            f"controllers names {unknown[0]}, but the replay has {', '.join(sorted(known)) or 'no controller'}."
        )
    found = recommend(
        outcomes,
        config.target or str(replay["reference"]),
        budget=config.budget,
        margin=config.margin,
        with_steps=frozenset(name for name, one in arms.items() if one.num_mh_steps),
        seed=config.seed,
    )
    output = Path(config.output or folder)
    if output.resolve() != Path(folder).resolve():
        settings = {**asdict(config), "replay": place_of(folder, output)}
        claim(output, "dps recommend", settings, (FILE, NAME))
    result = {"format_version": FORMAT_VERSION, **found.result}
    # A controller that is shipped, a rule and a budget have a policy file of this name.
    result |= {"name": re.sub(r"[^\w.+-]+", "-", found.result["policy"]["label"]).strip("-"), "enough": enough(result)}
    result |= {"words": sentences(result, arms), "notes": notes(result), "policy_file": NAME}
    (output / NAME).unlink(missing_ok=True)
    (output / FILE).unlink(missing_ok=True)
    if (missing := _write_policy(output, found.settings, result, replay, arms, config, ship)) is not None:
        result["notes"].append(missing)
        result["policy_file"] = None
    replace_file(output / FILE, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return result


def _arms(replay: Mapping[str, Any], folder: Path) -> dict[str, SamplerConfig]:
    """Return the sampler of each arm of a replay's stores."""
    try:
        stores = replay["provenance"]["stores"]
        return {name: SamplerConfig(**one) for store in stores for name, one in store["arms"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"Expected {folder / 'replay.json'} to say how its arms were sampled: run dps replay again."
        ) from error


def _write_policy(
    output: Path,
    settings: Mapping[str, Any],
    result: Mapping[str, Any],
    replay: Mapping[str, Any],
    arms: Mapping[str, SamplerConfig],
    config: RecommendConfig,
    ship: Ship,
) -> str | None:
    """Write ``policy.yaml``; where its controller has not been shipped, return what to do instead."""
    name, threshold, decides = settings["policy"], settings["threshold"], {}
    if settings["family"] == "controller":
        source = config.controllers.get(name, str(settings["controller"]))
        if name not in config.controllers and not (Path(source).exists() and controller_file(source).is_file()):
            return (
                f"There is no {NAME}: the replay has only cross-validated probabilities of {name}. Train it on all "
                f"questions and ship it (dps fit, then dps ship RUN --output FOLDER), then run dps recommend again "
                f"with --controllers.{name} FOLDER."
            )
        copy = output / "controller"
        shutil.rmtree(copy, ignore_errors=True)
        shipped = ship(source, copy, threshold)
        Policy(Ladder.parse(settings["ladder"]), controller=shipped)  # refuses one that was trained on another ladder
        decides = {"controller": copy.name, "threshold": shipped.threshold}
    elif settings["family"] == "rule":
        rule = RULES[name]
        given = {key: value for key, value in (settings["rule"] or {}).items() if key != "name"}
        decides = {"rule": replace(rule, **(given | {"threshold": threshold}))}  # type: ignore[type-var]
    else:
        decides = {"budget": settings["k"]}
    measured, provenance = result["measured"], replay["provenance"]
    rounded = {
        what: [None if measured[what][end] is None else round(measured[what][end], digits) for end in _ENDS]
        for what, digits in (("accuracy", 4), ("tokens", 1), ("difference", 4), ("tokens_ratio", 3))
    }
    write_policy(
        output,
        name=result["name"],
        ladder=Ladder.parse(settings["ladder"]),
        arms=arms,
        aggregator=settings["aggregator"],
        model={key: provenance["model"].get(key) for key in ("name", "fingerprint", "dtype")},
        benchmark={
            key: provenance["benchmark"][key] for key in ("name", "split", "prompt") if key in provenance["benchmark"]
        },
        measured={
            "questions": measured["num_questions"],
            **rounded,
            "reference": result["target"]["name"],
            "how": "on questions of other folds than those that chose, with 95 % intervals",
            "folds_that_chose_it": f"{result['num_folds_agree']} of {len(result['folds'])}",
        },
        made_by={
            "command": "dps recommend",
            "settings": {key: value for key, value in asdict(config).items() if value and key in _CHOOSE},
            "version": __version__,
            "stores": [store["fingerprint"] for store in provenance["stores"]],
        },
        **decides,
    )
    return None


_ENDS, _CHOOSE = ("value", "low", "high"), ("target", "budget", "margin")


def _of(one: HeldOut) -> dict[str, dict[str, float | None]]:
    return {"accuracy": plain(bounded(one.correct, 0.0, 1.0)), "tokens": plain(estimate(one.tokens))}


def _told(policies: Policies, point: int) -> dict[str, Any]:
    """Return what says which point it is."""
    one = policies.outcomes.settings[point]
    kept = ("policy", "series", "family", "ladder", "aggregator", "rule", "controller", "threshold")
    return {"label": policies.label(point), **{key: one[key] for key in kept}, "budget": one["k"]}


def _beside(
    policies: Policies, chosen: HeldOut, reference: int, margin: float, *, is_fixed: bool
) -> dict[str, Any] | None:
    """Return the most accurate fixed budget of no more tokens than the choice, and the cheapest that passes its test.

    It is chosen like the choice itself, on the questions of other folds. None where the choice is a fixed budget, or
    none costs so little.
    """
    cost, fixed = float(chosen.tokens.mean()), policies.fixed()
    fixed = fixed[policies.tokens[fixed].mean(axis=1) <= cost]
    if is_fixed or not len(fixed):
        return None
    choose = at_most(policies, cost, [fixed])
    other = held_out(policies, choose)
    margin = effective_margin(len(chosen.points), margin, policies.error)
    same = [
        point
        for point in fixed[np.argsort(policies.tokens[fixed].mean(axis=1), kind="stable")]
        if loss_is_below(policies.correct[point] - policies.correct[reference], margin, policies.error)
    ]
    return {
        "label": policies.label(choose(np.ones(len(chosen.points), dtype=bool))),
        **_of(other),
        "difference": plain(difference(other.correct, chosen.correct)),
        "passing": policies.label(int(same[0])) if same else None,
    }


def _next_best(
    policies: Policies,
    point: int,
    rule: Callable[[Sequence[np.ndarray]], Choose],
    target: int,
    budget: float | None,
    margin: float,
) -> dict[str, Any] | None:
    """Return the best of the other policies and ladders by the same rule, and how many questions would decide.

    Both are compared at thresholds that other folds chose, policy and ladder being what all questions chose. A policy
    that does the same on every question by another name is none. None where no other policy passes.
    """
    everything = np.ones(policies.correct.shape[1], dtype=bool)
    same = [
        i
        for i, points in enumerate(policies.groups)
        if any(np.array_equal(policies.tokens[p], policies.tokens[point]) for p in points)
    ]
    others = [points for i, points in enumerate(policies.groups) if i not in (*same, policies.group_of(point))]
    if budget is None:
        others = [p for p in others if passing(policies, target, margin, p, everything) is not None]
    else:
        others = [p for p in others if policies.tokens[p].mean(axis=1).min() <= budget]
    if not others:
        return None
    second = rule(others)(everything)
    mine, its = (held_out(policies, rule([policies.groups[policies.group_of(one)]])) for one in (point, second))
    apart = difference(its.correct, mine.correct)
    return {
        **_told(policies, second),
        **_of(its),
        "difference": plain(apart),
        "tokens_ratio": plain(ratio(its.tokens, mine.tokens)),
        "questions_needed": needed(apart.value, apart.stderr, apart.num_questions),
    }


def _power(policies: Policies, with_steps: frozenset[str], seed: int) -> dict[str, Any] | None:
    """Return from which budget on policies with power sampling beat those without, if from any.

    At each of :data:`PRICES` budgets, from the cheapest policy with power sampling to the dearest point of all, the
    most accurate policy of either kind is chosen on other folds; the intervals of the differences hold for all budgets
    together. None where the replay has only one of the kinds.
    """
    has = np.array([bool(with_steps & set(one["arms"])) for one in policies.outcomes.settings])
    every = np.concatenate(policies.groups)  # the simplest first
    power, cheap = every[has[every]], every[~has[every]]
    if not len(power) or not len(cheap):
        return None
    means = policies.tokens.mean(axis=1)
    least = max(float(means[kind].min()) for kind in (power, cheap)) * (1 + 1e-9)
    budgets = np.unique(np.geomspace(least, max(least, float(means.max())), PRICES))
    both = [[held_out(policies, at_most(policies, b, [kind])) for b in budgets.tolist()] for kind in (power, cheap)]
    each = np.stack([one.correct - other.correct for one, other in zip(*both, strict=True)], axis=1)
    weights = resamples(len(each), RESAMPLES, seed)
    ends = simultaneous(each.mean(axis=0).tolist(), weights @ each)
    worth = next((i for i, (low, _) in enumerate(ends) if low > 1e-9), None)
    shown = int(each.mean(axis=0).argmax()) if worth is None else worth  # at its best
    everything = np.ones(len(each), dtype=bool)
    points = [at_most(policies, float(budgets[shown]), [kind])(everything) for kind in (power, cheap)]
    return {
        "worth_from": None if worth is None else float(budgets[worth]),
        "up_to": float(budgets[-1]),
        "difference": {"value": float(each[:, shown].mean()), "low": ends[shown][0], "high": ends[shown][1]},
        "power": _told(policies, points[0]) | _of(both[0][shown]),
        "cheap": _told(policies, points[1]) | _of(both[1][shown]),
        "budgets": budgets.tolist(),
    }
