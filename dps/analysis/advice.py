"""The words of ``dps recommend``: five sentences for a reader who has never seen the method, and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from dps.analysis.words import interval, listing, number, percent, points_interval, points_of, questions
from dps.decide.ladder import Ladder
from dps.decide.rules import LEADS, WIDTHS
from dps.estimates import FEWEST
from dps.sampler.settings import SamplerConfig

_TAKES = {
    "majority": "answer with the most frequent answer",
    "best_logprob": "answer with the response of the highest log p",
    "weighted": "answer with the answer whose responses have the largest sum of p",
    "best_logprob_per_token": "answer with the response of the highest log p per token",
    "weighted_per_token": "answer with the most frequent answer, each response weighted by its p per token",
}


def sentences(result: Mapping[str, Any], arms: Mapping[str, SamplerConfig]) -> list[str]:
    """Return the five sentences of a recommendation, see :func:`dps.analysis.recommend.recommend`.

    Args:
        result: What was found.
        arms: The sampler of each arm of the replay.
    """
    return [_use(result, arms), _get(result, arms), _beside(result), _next(result), _power(result, arms)]


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a careful reader must know before believing the sentences."""
    target, tried, folds = result["target"], result["tried"], result["folds"]
    of = result["policy"]
    best = "most accurate" if result["budget"] is not None else "cheapest"
    told = [
        f"The policy is the {best} of {tried['policies']:,} that were compared at {tried['points']:,} points. On the "
        f"questions that chose it, it has {_in_sample(result)}, which may flatter it."
    ]
    if result["num_folds_agree"] < len(folds):
        others = sorted({one["label"] for one in folds if one["label"] != of["label"]})
        told.append(f"The other folds chose {listing(others)}.")
    if result["budget"] is None and result["excludable"] > target["margin"]:
        told.append(
            f"So few questions cannot show that less than {points_of(target['margin'])} is lost: the choice excludes a "
            f"loss of {100 * result['excludable']:.1f} points."
        )
    return told


# -- the sentences -----------------------------------------------------------------------------------------------------


def _use(result: Mapping[str, Any], arms: Mapping[str, SamplerConfig]) -> str:
    policy, target = result["policy"], result["target"]
    does = f"Use {policy['label']}: {how(policy, arms)}"
    count, stderr = result["measured"]["num_questions"], result["measured"]["difference"]["stderr"]
    if count < FEWEST:
        return f"{does}; but only for now, since {questions(count)} are too few (below {FEWEST}) to compare."
    if result["too_few"]:
        return (
            f"{does}; but only for now, since the standard error of its difference from {target['name']} is "
            f"{100 * stderr:.1f} points on {questions(count)}, too large to tell policies apart."
        )
    if policy["label"] == target["name"] and result["budget"] is None:
        return f"{does}; that is the target itself, since nothing cheaper was shown to be as accurate."
    return f"{does}."


def _get(result: Mapping[str, Any], arms: Mapping[str, SamplerConfig]) -> str:
    measured, target = result["measured"], result["target"]
    agree, count = result["num_folds_agree"], len(result["folds"])
    gets = f"answers {_accuracy(measured)} of questions rightly with {_tokens(measured)} tokens each"
    if agree == count:
        gets = f"It {gets}, on {questions(measured['num_questions'])} that had no part in the choice"
    else:
        gets = (
            f"A policy chosen in this way {gets}, on {questions(measured['num_questions'])} that had no part in the "
            f"choice ({agree} of {count} folds chose this one, which has {_in_sample(result)} on all)"
        )
    if result["policy"]["label"] == target["name"] and agree == count:
        return f"{gets}."
    versus = (
        f"{gets}; {target['name']}, {responses(target['ladder'], arms)} for every question, has {_accuracy(target)} "
        f"with {_tokens(target)}, so that is {points_interval(measured['difference'])} points for "
        f"{interval(measured['tokens_ratio'])} of the tokens"
    )
    if result["budget"] is not None:
        return f"{versus}."
    shown = "is excluded" if measured["no_loss"] else "is not excluded"
    return f"{versus}, and a loss of {points_of(target['margin'])} {shown}."


def _beside(result: Mapping[str, Any]) -> str:
    fixed = result["beside"]
    if result["policy"]["family"] == "fixed":
        return "It is a fixed budget: every question gets as many responses, and nothing decides on the way."
    if fixed is None:
        return "No fixed number of responses costs so little."
    said = (
        f"The best fixed number of responses for no more tokens is {fixed['label']}: {_accuracy(fixed)} with "
        f"{_tokens(fixed)}, a difference of {points_interval(fixed['difference'])} points"
    )
    if result["budget"] is not None:
        as_good = fixed["difference"]["value"] >= 0
        return f"{said}{', so the simpler fixed number will do' if as_good else ''}."
    if fixed["passing"] is not None:
        return f"{said}; {fixed['passing']} passes the same test, so the simpler fixed number will do."
    return (
        f"{said}; it does not pass the same test, being {points_interval(fixed['from_target'])} points from the target."
    )


def _next(result: Mapping[str, Any]) -> str:
    other, have = result["next_best"], result["measured"]["num_questions"]
    if other is None:
        wanted = "keeps the budget" if result["budget"] is not None else "was shown to be as accurate as the target"
        return f"No other policy {wanted}."
    said = f"The next best is {other['label']}, which spends {interval(other['tokens_ratio'])} of its tokens"
    if (count := other["questions_needed"]) is None:
        return f"{said} for the same accuracy."
    enough = "you have as many" if count <= have else f"you have {have:,}"
    return (
        f"{said} for a difference of {points_interval(other['difference'])} points; to tell which of them is more "
        f"accurate takes {questions(count)}, and {enough}."
    )


def _power(result: Mapping[str, Any], arms: Mapping[str, SamplerConfig]) -> str:
    power, unknown = result["power"], "Whether power sampling is worth its price is not known"
    if power is None:
        if any(config.num_mh_steps for config in arms.values()):
            return (
                f"{unknown}, since the harvest has no cheaper arm: add one with dps harvest --ladder '[plain 16]' and "
                "dps store merge."
            )
        return f"{unknown}, since the harvest has no arm of it."
    one, other = power["power"], power["cheap"]
    both = (
        f"{one['label']} has {percent(one['accuracy']['value'])} with {_tokens(one)}, and without power sampling "
        f"{other['label']} has {percent(other['accuracy']['value'])} with {_tokens(other)}, a difference of "
        f"{points_interval(power['difference'])} points"
    )
    if power["worth_from"] is not None:
        return f"Power sampling is worth its price from {number(power['worth_from'])} tokens a question on: {both}."
    return (
        f"Power sampling is not worth its price at any budget up to {number(power['up_to'])} tokens a question: at its "
        f"best, {both}."
    )


def _in_sample(result: Mapping[str, Any]) -> str:
    return f"{percent(result['in_sample']['accuracy'])} with {number(result['in_sample']['tokens'])}"


def _accuracy(of: Mapping[str, Any]) -> str:
    one = of["accuracy"]
    return f"{percent(one['value'])} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _tokens(of: Mapping[str, Any]) -> str:
    return number(of["tokens"]["value"])


# -- what a policy does ------------------------------------------------------------------------------------------------


def how(policy: Mapping[str, Any], arms: Mapping[str, SamplerConfig]) -> str:
    """Return what a policy does, as an instruction: ``draw 4 responses at temperature 0.25 and answer with ...``."""
    ladder, takes = Ladder.parse(policy["ladder"]), _TAKES.get(policy["aggregator"], policy["aggregator"])
    if policy["family"] == "fixed" or policy["threshold"] < 0:
        return f"draw {responses(policy['ladder'], arms)} for every question, and {takes}"
    parts = []
    for arm, rungs in groupby(ladder.rungs, key=lambda rung: rung.arm):
        counts = [rung.count for rung in rungs]
        even = len(set(counts)) == 1 and len(counts) > 1
        sizes = f"{counts[0] if counts[0] > 1 else 'one'} at a time" if even else f"{listing(map(str, counts))} of them"
        parts.append(f"{arm_words(arm, arms.get(arm))}, {sizes}")
    return f"draw {', then '.join(parts)}, until {until(policy)} or there are {ladder.maximum}, and {takes}"


def responses(ladder: Sequence[str], arms: Mapping[str, SamplerConfig]) -> str:
    """Return what a ladder has at its end: ``16 responses at temperature 0.25``."""
    return listing(f"{n} {arm_words(arm, arms.get(arm))}" for arm, n in Ladder.parse(ladder).totals.items())


def arm_words(name: str, config: SamplerConfig | None) -> str:
    """Return what the responses of an arm are."""
    if config is None:
        return f"responses of the arm {name}"
    if not config.num_mh_steps:
        return f"responses at temperature {config.temperature:g}"
    return f"power-sampled responses (alpha {config.alpha:g}, {config.num_mh_steps} steps a block)"


def until(policy: Mapping[str, Any]) -> str:
    """Return when a policy stops: ``one answer is ahead by 2 votes``."""
    threshold = policy["threshold"]
    name, sure = "lead" if policy["policy"] in LEADS else policy["policy"], 1 - threshold
    if policy["family"] == "controller":
        return f"the trained controller {name} is sure enough (threshold {threshold:.3g})"
    width = math.ceil(sure * (policy["rule"] or {}).get(WIDTHS.get(name, ""), 0) - 1e-9)
    return {
        "lead": f"one answer is ahead by {width} vote{'s' * (width != 1)}",
        "esc": f"the last {width} answers are the same",
        "adaptive-consistency": f"the leading answer is ahead of the second with a probability of {100 * sure:.3g} %",
        "sprt": f"the votes are {sure / max(threshold, 1e-9):.3g} times likelier if the leading answer is ahead than "
        "if it is not",
        "certificate": f"the leading answer is certified to be the model's most likely one (threshold {threshold:.3g})",
        "entropy": f"the mean entropy of the tokens is at most {-math.log(max(sure, 1e-9)):.3g} nats",
        "self-confidence": f"the mean probability of the likeliest token is at least {sure:.3g}",
        "uab": f"one more response is expected to add less than {100 * threshold:.3g} points of coverage",
    }.get(name, f"the rule {name} stops (threshold {threshold:.3g})")
