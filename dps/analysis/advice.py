"""The words of ``dps recommend``: a few sentences for a reader who has never seen the method, and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from dps.analysis.words import interval, listing, number, percent, points_interval, points_of, questions, turn
from dps.decide.ladder import Ladder, Rung
from dps.decide.rules import LEADS, WIDTHS
from dps.estimates import FEWEST
from dps.sampler.settings import SamplerConfig

_TAKES = {
    "majority": "take the most frequent answer",
    "best_logprob": "take the likeliest response",
    "weighted": "take the answer with the largest sum of probabilities",
    "best_logprob_per_token": "take the likeliest response per token",
    "weighted_per_token": "take the most frequent answer, weighted by probability per token",
}
MOST_WORDS = 25
"""Of the first sentence."""
MANY = 100_000
"""More questions than this nobody has."""


def sentences(result: Mapping[str, Any], arms: Mapping[str, SamplerConfig]) -> list[str]:
    """Return the sentences of a recommendation (:func:`dps.analysis.recommend.recommend`); the first says what to do.

    Args:
        result: What was found.
        arms: The sampler of each arm of the replay.
    """
    does = how(result["policy"], arms)
    told = [f"{does[0].upper()}{does[1:]}.", _get(result), _against(result), _beside(result), _next(result)]
    return [*filter(None, told), _power(result, arms)]


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a careful reader must know before believing the sentences."""
    target, tried, folds = result["target"], result["tried"], result["folds"]
    within = None if result["budget"] is None else f"within {number(result['budget'])} tokens a question"
    least = f"{100 * max(target['margin'], result['excludable']):.1f} points"
    best = f"the cheapest that excludes a loss of {least}" if within is None else f"the most accurate {within}"
    told = [
        f"Of {tried['policies']:,} policies with {tried['points']:,} settings this is {best}, or a simpler one that "
        f"does as well. Brackets are 95 % intervals. On the questions that chose it, it has "
        f"{percent(result['in_sample']['accuracy'])} with {number(result['in_sample']['tokens'])} tokens a question, "
        "which may flatter it."
    ]
    if result["num_folds_agree"] < len(folds):
        others = sorted({one["label"] for one in folds if one["label"] != result["policy"]["label"]})
        told.append(
            f"{result['num_folds_agree']} of {len(folds)} folds chose it, the others {listing(others)}: the numbers on "
            "questions that had no part in the choice are those of all these together."
        )
    if result["budget"] is None and result["excludable"] > target["margin"]:
        told.append(
            f"The choice tests {tried['policies']:,} policies at once, so it can exclude a loss of "
            f"{100 * result['excludable']:.1f} points at best; whether {points_of(target['margin'])} is excluded is "
            "measured for the choice alone, on questions of other folds."
        )
    return told


def enough(result: Mapping[str, Any]) -> str:
    """Return whether the questions are enough, in a few words: ``320: enough``."""
    count, margin = result["measured"]["num_questions"], result["target"]["margin"]
    if result["too_few"]:
        return f"{count:,}: too few to compare policies"
    if result["budget"] is None and result["excludable"] > margin:
        return (
            f"{count:,}: the choice, a test of {result['tried']['policies']:,} policies at once, excludes a loss of "
            f"{100 * result['excludable']:.1f} points at best"
        )
    return f"{count:,}: enough"


# -- the sentences -----------------------------------------------------------------------------------------------------


def _get(result: Mapping[str, Any]) -> str:
    measured, agree, folds = result["measured"], result["num_folds_agree"], len(result["folds"])
    says = f"This policy, {result['policy']['label']}, answers"
    if 2 * agree <= folds:  # the numbers are mostly those of other policies
        says = (
            f"Policies chosen in this way (this one, {result['policy']['label']}, in {agree} of {folds} folds) answer"
        )
    gets = (
        f"{says} {_accuracy(measured)} of questions rightly with {_tokens(measured)} a question, on "
        f"{questions(measured['num_questions'])} that had no part in the choice"
    )
    if not result["too_few"]:
        return f"{gets}."
    if measured["num_questions"] < FEWEST:
        return f"{gets}: too few to rely on, so use it for now only, and choose again with {FEWEST} or more."
    return (
        f"{gets}: use it for now only, since the standard error of its difference from {result['target']['name']} is "
        f"{100 * measured['difference']['stderr']:.1f} points."
    )


def _against(result: Mapping[str, Any]) -> str:
    measured, target = result["measured"], result["target"]
    if result["policy"]["label"] == target["name"]:
        return "" if result["budget"] else "That is the target itself: nothing cheaper was shown to be as accurate."
    shown = "" if measured["no_loss"] else "not "
    shown = (
        ""
        if result["budget"]
        else f", and on these questions a loss of {points_of(target['margin'])} is {shown}excluded"
    )
    return (
        f"Beside {target['name']} ({_accuracy(target)} with {_tokens(target)} a question) that is "
        f"{points_interval(measured['difference'])} points for {interval(measured['tokens_ratio'])} of the tokens"
        f"{shown}."
    )


def _beside(result: Mapping[str, Any]) -> str:
    fixed = result["beside"]
    if result["policy"]["family"] == "fixed":
        return ""
    if fixed is None:
        return "No fixed number of responses costs so little."
    same = (
        ""
        if fixed["passing"] is None or result["budget"]
        else f"; {fixed['passing']} excludes that loss, too, for no more tokens"
    )
    return (
        f"The best fixed number of responses for no more tokens is {fixed['label']}: {_accuracy(fixed)} with "
        f"{_tokens(fixed)}, that is {points_interval(fixed['difference'])} points beside this policy{same}."
    )


def _next(result: Mapping[str, Any]) -> str:
    other, have = result["next_best"], result["measured"]["num_questions"]
    if other is None:
        wanted = "keeps the budget" if result["budget"] is not None else "was shown to be as accurate as the target"
        return f"No other policy {wanted}."
    said = f"The next best is {other['label']}, with {interval(other['tokens_ratio'])} of its tokens"
    if (count := other["questions_needed"]) is None:
        return f"{said} and the same accuracy."
    takes = questions(count) if count <= MANY else f"more than {MANY:,} questions"
    return (
        f"{said} and {points_interval(other['difference'])} points beside this policy; which is more "
        f"accurate would take {takes} to say, and there are {have:,}."
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
    each = (
        f"{one['label']} has {percent(one['accuracy']['value'])} ({_tokens(one)})"
        for one in (power["power"], power["cheap"])
    )
    both = f"with it {next(each)}, without it {next(each)}, {points_interval(power['difference'])} points"
    if power["worth_from"] is not None:
        return f"Power sampling is worth its price from {number(power['worth_from'])} tokens a question on: {both}."
    return (
        f"Power sampling is not worth its price at any budget up to {number(power['up_to'])} tokens a question: at its "
        f"best, {both}."
    )


def _accuracy(of: Mapping[str, Any]) -> str:
    one = of["accuracy"]
    return f"{percent(one['value'])} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"


def _tokens(of: Mapping[str, Any]) -> str:
    return f"{number(of['tokens']['value'])} tokens"


# -- what a policy does ------------------------------------------------------------------------------------------------


def how(policy: Mapping[str, Any], arms: Mapping[str, SamplerConfig]) -> str:
    """Return what a policy does, as an instruction of at most :data:`MOST_WORDS` words for ladders of three arms."""
    ladder, takes = Ladder.parse(policy["ladder"]), _TAKES[policy["aggregator"]]
    runs = [Rung(arm, sum(r.count for r in rungs)) for arm, rungs in groupby(ladder.rungs, key=lambda rung: rung.arm)]
    if policy["family"] == "fixed" or policy["threshold"] < 0:
        return f"draw {listing(_draws(runs, arms))} for every question, and {takes}"
    counts = {rung.count for rung in ladder.rungs}
    step = min(counts) if len(counts) == 1 and len(ladder.rungs) > 1 else 0
    stepwise = f", {'one' if step == 1 else step} at a time" if step else ""
    once, stop = turn(ladder.rungs), f"until {until(policy)}"
    climbed = ", then ".join(_draws(runs, arms))
    if 1 < len(once) < len(ladder.rungs):
        climbed = f"{listing(_draws([Rung(*total) for total in ladder.totals.items()], arms))} in turn"
    plainly = f"draw {climbed}, {stop}"  # the shortest; what fits is added
    long = (f"draw up to {climbed}{stepwise}, {stop}; {takes}", f"draw up to {climbed}{stepwise}, {stop}")
    if len(plainly.split()) > MOST_WORDS:
        plainly = f"climb {', '.join(map(str, runs))}, {stop}" if len(runs) < 4 else f"climb the ladder below {stop}"
    return next((text for text in long if len(text.split()) <= MOST_WORDS), plainly)


def _draws(rungs: Sequence[Rung], arms: Mapping[str, SamplerConfig]) -> list[str]:
    """Return what rungs draw: ``16 responses at temperature 1``, ``8 by power sampling``."""
    told = []
    for rung in rungs:
        config, noun = arms.get(rung.arm), "" if told else f" response{'s' * (rung.count > 1)}"
        law = f"of {rung.arm}" if config is None else "by power sampling" if config.num_mh_steps else ""
        told.append(f"{rung.count}{noun} {law or f'at temperature {config.temperature:g}'}")  # type: ignore[union-attr]
    return told


def until(policy: Mapping[str, Any]) -> str:
    """Return when a policy stops: ``one answer leads by 2 votes``."""
    threshold = policy["threshold"]
    name, sure = "lead" if policy["policy"] in LEADS else policy["policy"], 1 - threshold
    if policy["family"] == "controller":
        return f"the trained controller {name} is sure (threshold {threshold:.3g})"
    width = math.ceil(sure * (policy["rule"] or {}).get(WIDTHS.get(name, ""), 0) - 1e-9)
    return {
        "lead": f"one answer leads by {width} vote{'s' * (width != 1)}",
        "esc": f"the last {width} answers agree",
        "adaptive-consistency": f"the leading answer is ahead with a probability of {sure:.3g}",
        "sprt": f"the votes are {sure / max(threshold, 1e-9):.3g} to 1 for the leading answer",
        "certificate": f"the leading answer is certified (threshold {threshold:.3g})",
        "entropy": f"the mean token entropy is at most {-math.log(max(sure, 1e-9)):.3g} nats",
        "self-confidence": f"the likeliest token has a mean probability of {sure:.3g}",
        "uab": f"one more would cover less than {100 * threshold:.3g} points more",
    }.get(name, f"the rule {name} stops (threshold {threshold:.3g})")
