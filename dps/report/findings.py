"""What a report says first: plain sentences computed from the paired comparisons of ``statistics``.

Each function answers one question that a reader asks and says "cannot be told apart" where the data do not decide.
Where the cheap rival wins at matched tokens, :func:`findings` puts that first (METHOD section 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dps.policies import RULES
from dps.report.mixing import FROZEN
from dps.report.statistics import SURE, Estimate, Match, Outcomes, estimate, match_tokens, ratio, share_at_k
from dps.report.words import listing, nats, number, percent, percent_with_error, points, share, signed_points

_SERIES = {"power": "Power sampling", "plain": "Plain sampling", "lowtemp": "Low-temperature sampling"}
_VOTES = {
    "majority": "with a majority vote",
    "weighted": "with a weighted vote",
    "best_logprob": "taking the most probable response",
}


def findings(outcomes: Sequence[Outcomes], aggregators: dict[str, str]) -> list[str]:
    """Return the sentences, the most sobering first.

    Args:
        outcomes: All policies on the same questions, in the order of the report.
        aggregators: Aggregator of each series.
    """
    reference = reference_of(outcomes)
    rivals = [rival_finding(outcomes, series, aggregators[series]) for series in rivals_of(outcomes)]
    sentences = [text for text, first in rivals if first]
    sentences += best_finding(outcomes)
    sentences += more_trajectories_finding(outcomes)
    if reference is not None:
        sentences += [controller_finding(o, outcomes, reference) for o in outcomes if o.family == "dynamic"]
    sentences += [text for text, first in rivals if text and not first]
    return sentences


def reference_of(outcomes: Sequence[Outcomes]) -> Outcomes | None:
    """Return the policy that all others are compared with: power sampling with the largest fixed k, usually 8."""
    power = curve_of(outcomes, "power")
    return power[-1] if power else None


def curve_of(outcomes: Sequence[Outcomes], series: str) -> list[Outcomes]:
    """Return the fixed k's of a series in order of k."""
    return sorted((o for o in outcomes if o.series == series and o.family == "fixed"), key=lambda o: o.k or 0)


def rivals_of(outcomes: Sequence[Outcomes]) -> list[str]:
    """Return the fixed series other than power sampling, in order."""
    return list(dict.fromkeys(o.series for o in outcomes if o.family == "fixed" and o.series != "power"))


def matches(outcomes: Sequence[Outcomes]) -> list[Match]:
    """Return every comparison at matched tokens: power policies with each rival, controllers with fixed k too."""
    found = []
    for policy in outcomes:
        against = [*(["power"] if policy.family == "dynamic" else []), *rivals_of(outcomes)]
        if policy.family == "dynamic" or policy.series == "power":
            found += [match_tokens(policy, curve) for s in against if (curve := curve_of(outcomes, s))]
    return [match for match in found if match is not None and match.difference.num_questions]


# -- the sentences -----------------------------------------------------------------------------------------------------


def rival_finding(outcomes: Sequence[Outcomes], series: str, aggregator: str) -> tuple[str, bool]:
    """Say how a cheap rival does against power policies that spend the same tokens.

    Returns:
        The sentences, and whether they belong first: the rival wins somewhere, or is as accurate as the largest fixed k
        with fewer tokens.
    """
    against = [match for match in matches(outcomes) if match.rival == series]
    if not against:
        return "", False
    name = f"{_SERIES.get(series, series)} {_VOTES.get(aggregator, aggregator)}"
    wins = [match for match in against if match.difference.sign < 0]
    # Where the rival was not run with as many tokens, only its wins say something about matched tokens.
    exhausted = [match for match in against if match.exhausted and match not in wins]
    losses = [match for match in against if match.difference.sign > 0 and match not in exhausted]
    open_ = [match for match in against if match.difference.sign == 0 and match not in exhausted]
    parts = []
    if wins:
        shown = max(wins, key=lambda m: m.accuracy)  # the most accurate policy that it beats
        spent = f"with {number(shown.rival_tokens)}" if shown.exhausted else "at the same"
        matched = "matched or fewer" if any(match.exhausted for match in wins) else "matched"
        parts.append(
            f"{name} wins at {matched} tokens over {listing(m.policy for m in wins)}: {spent} tokens it reaches "
            f"{percent(shown.rival_accuracy)} where {shown.policy} has "
            f"{percent(shown.accuracy)} with {number(shown.tokens)}, a difference of "
            f"{_points(shown.difference)}."
        )
        if losses:
            parts.append(f"It loses to {listing(m.policy for m in losses)}.")
        if open_:
            parts.append(f"It cannot be told apart from {listing(m.policy for m in open_)}.")
    elif losses:
        shown = max(losses, key=lambda m: m.accuracy)
        parts.append(
            f"{name} loses at matched tokens to {listing(m.policy for m in losses)}: {shown.policy} is "
            f"{_points(shown.difference)} above it with {number(shown.tokens)} tokens."
        )
        if open_:
            parts.append(f"It cannot be told apart from {listing(m.policy for m in open_)}.")
    elif open_:
        shown = max(open_, key=lambda m: abs(m.difference.value))
        parts.append(
            f"{name} cannot be told apart at matched tokens from {listing(m.policy for m in open_)} with "
            f"{_questions(shown.difference)}; the largest difference is {_points(shown.difference, signed=True)} for "
            f"{shown.policy}."
        )
    if exhausted:
        most = exhausted[-1]
        parts.append(
            f"{'It' if parts else name} was run up to k = {most.k_below} ({number(most.rival_tokens)} tokens, "
            f"{percent(most.rival_accuracy)}), fewer tokens than {listing(m.policy for m in exhausted)} "
            f"{'spends' if len(exhausted) == 1 else 'spend'}: {most.policy} is {_ahead(most.difference)}, and what "
            "more samples would reach was not measured."
        )
    cheaper = _cheaper_than_reference(outcomes, series)
    return " ".join([*parts, *cheaper]), bool(wins or cheaper)


def _cheaper_than_reference(outcomes: Sequence[Outcomes], series: str) -> list[str]:
    """Name the rival's smallest k that is as accurate as the reference on these questions and spends less."""
    reference = reference_of(outcomes)
    if reference is None:
        return []
    for rival in curve_of(outcomes, series):
        difference = paired(rival, reference)
        tokens = ratio(rival.tokens, reference.tokens)
        if difference.value >= 0 and tokens.value < 1:
            return [
                f"{rival.policy} reaches {percent(estimate(rival.correct).value)} with {_share(tokens)} of the tokens "
                f"of {reference.policy} ({_points(difference, signed=True)})."
            ]
    return []


def best_finding(outcomes: Sequence[Outcomes]) -> list[str]:
    """Say which policy is the most accurate, and which cheaper ones cannot be told apart from it."""
    graded = [o for o in outcomes if estimate(o.correct).num_questions]
    if not graded:
        return ["No question has a grade, so there are no accuracies, only costs."]
    # Of equally accurate policies the cheapest is the best.
    best = max(graded, key=lambda o: (round(estimate(o.correct).value, 12), -float(o.tokens.mean())))
    accuracy = estimate(best.correct)
    text = (
        f"The highest accuracy is that of {best.policy}: {percent_with_error(accuracy.value, _stderr(accuracy))} % on "
        f"{_questions(accuracy)}, with {number(best.tokens.mean())} tokens a question."
    )
    if len(graded) == 1:
        return [text]
    level = [o for o in graded if o is not best and paired(best, o).sign == 0]
    cheaper = sorted((o for o in level if o.tokens.mean() < best.tokens.mean()), key=lambda o: float(o.tokens.mean()))
    if not level:
        text += " It is above every other policy by more than two standard errors."
    elif cheaper:
        least = cheaper[0]
        shown = f"{least.policy} ({percent(estimate(least.correct).value)} with {number(least.tokens.mean())} tokens)"
        if len(cheaper) > 1:
            text += f" Of the policies that spend less, {len(cheaper)} cannot be told apart from it; the cheapest is"
            text += f" {shown}."
        else:
            text += f" Of the policies that spend less, only {shown} cannot be told apart from it."
    else:
        text += " No policy that spends fewer tokens comes within two standard errors of it."
    return [text]


def more_trajectories_finding(outcomes: Sequence[Outcomes]) -> list[str]:
    """Say whether the largest fixed k beats k = 2 (or the smallest that was run)."""
    power = curve_of(outcomes, "power")
    if len(power) < 2:
        return []
    large = power[-1]
    small = next((o for o in power if o.k == 2 and o is not large), power[0])
    difference, tokens = paired(large, small), ratio(large.tokens, small.tokens)
    if not difference.num_questions:
        return []
    pair = f"k = {large.k} with power sampling"
    cost = f"for {tokens.value:.1f} times the tokens"
    if difference.sign > 0:
        decided = f"more than two standard errors of the paired difference ({_questions(difference)})"
        return [f"{pair} beats k = {small.k} by {_points(difference)}, {decided}, {cost}."]
    if difference.sign < 0:
        return [
            f"{pair} is worse than k = {small.k} by {_points(difference)}, more than two standard errors, "
            f"on {_questions(difference)}."
        ]
    return [
        f"{pair} and k = {small.k} cannot be told apart with {_questions(difference)}: the difference is "
        f"{_points(difference, signed=True)}, {cost}."
    ]


def controller_finding(policy: Outcomes, outcomes: Sequence[Outcomes], reference: Outcomes) -> str:
    """Say how a controller or rule does against the largest fixed k, and against a fixed k of the same tokens."""
    difference, tokens = paired(policy, reference), ratio(policy.tokens, reference.tokens)
    cost = f"at {_share(tokens)} of its tokens (mean k {policy.num_trajectories.mean():.1f})"
    if not difference.num_questions:
        return f"{policy.policy} spends {_share(tokens)} of the tokens of {reference.policy}; no answer has a grade."
    measured = f"{_points(difference, signed=True)}, paired over {_questions(difference)}"
    if difference.sign > 0:
        text = f"{policy.policy} is above {reference.policy} ({measured}) {cost}"
    elif difference.sign < 0:
        text = f"{policy.policy} falls below {reference.policy} by more than two standard errors ({measured}), {cost}"
    elif np.isnan(difference.stderr):
        text = f"{policy.policy} cannot be told apart from {reference.policy} with one question, {cost}"
    elif difference.at_least(1):
        text = f"{policy.policy} is within one standard error of {reference.policy} ({measured}) {cost}"
    else:
        text = f"{policy.policy} is between one and two standard errors below {reference.policy} ({measured}), {cost}"
    if list(share_at_k(policy)) == [reference.k]:
        return f"{text}: it always went on to k = {reference.k}, so it saved nothing."
    match = match_tokens(policy, curve_of(outcomes, "power"))
    if match is None or not match.difference.num_questions:
        return f"{text}."
    fixed = f"k = {match.k_below}" if match.weight_above == 0 else f"k = {match.k_below} and {match.k_above} mixed"
    compared = f"fixed {fixed}, the same tokens, gives {percent(match.rival_accuracy)}"
    who = "the rule" if policy.policy in RULES else "the controller"
    words = {1: f"{who} beats it", -1: f"{who} loses to it", 0: "the two cannot be told apart"}
    return f"{text}; {compared}: {words[match.difference.sign]} ({_points(match.difference, signed=True)})."


def mixing_finding(entry: Mapping[str, Any], *, several: bool = False) -> str:
    """Say whether the Metropolis-Hastings steps were enough, by what their second half gave.

    Args:
        entry: One of the report's ``mixing``.
        several: Whether there are others, so that this one has to be named.
    """
    last = entry["last_stage"]
    counts = {(row["least_steps"], row["most_steps"]) for row in entry["stages"]}
    least, most = last["least_steps"], last["most_steps"]
    steps = f"{most} Metropolis-Hastings step{'' if most == 1 else 's'}"
    place = "a stage" if counts == {(most, most)} else "in a chain's last stage"
    what = f"{steps} {place}" if least == most else f"{least} to {steps} {place}"
    where = f" of {entry['store']}" if several else ""
    if last["second_half_gain"] is None:
        return (
            f"Whether {what}{where} {'is' if most == 1 else 'are'} enough cannot be seen from so few: take two or more."
        )
    gain, stderr = last["second_half_gain"], last["second_half_gain_stderr"]
    if stderr is None or abs(gain) <= SURE * stderr:
        moved = f"changed log p by {'+' if gain > 0 else ''}{nats(gain, stderr)} nats"
    else:
        moved = f"{'lowered' if gain < 0 else 'raised'} log p by {nats(abs(gain), stderr)} nats"
    if last["second_half_gain_in_spreads"] is not None:
        moved += f", {abs(100 * last['second_half_gain_in_spreads']):.0f} % of the spread between trajectories"
    if last["verdict"] == "enough":
        return f"{what}{where} are enough here: the second half of the steps {moved}."
    if last["verdict"] == "not enough":
        return f"{what}{where} are not enough here: the second half of the steps still {moved}; raise num_mh_steps."
    text = f"Whether {what}{where} are enough is not clear: the second half of the steps {moved}"
    if last["frozen"] > FROZEN:
        text += f", but {percent(last['frozen'])} of the chains accepted none of their last stage's steps"
    return f"{text}."


# -- comparisons and words ---------------------------------------------------------------------------------------------


def paired(policy: Outcomes, other: Outcomes) -> Estimate:
    """Return the accuracy difference ``policy - other`` over the questions that both have a grade for."""
    return estimate(policy.correct - other.correct)


def verdict(difference: Estimate) -> str:
    """Return ``above``, ``below`` or ``undecided`` by two standard errors."""
    return {1: "above", -1: "below", 0: "undecided"}[difference.sign]


def _stderr(value: Estimate) -> float | None:
    """Return a standard error, None where there is none."""
    return None if np.isnan(value.stderr) else value.stderr


def _points(difference: Estimate, *, signed: bool = False) -> str:
    """Return a difference in percentage points with its standard error; without sign where words say the direction."""
    return f"{(signed_points if signed else points)(difference.value, _stderr(difference))} points"


def _ahead(difference: Estimate) -> str:
    """Return ``7.1 ± 2.9 points above it`` where that is decided, else that it is not."""
    if difference.sign > 0:
        return f"{_points(difference)} above it"
    return f"not told apart from it ({_points(difference, signed=True)})"


def _share(tokens: Estimate) -> str:
    return share(tokens.value, _stderr(tokens))


def _questions(value: Estimate) -> str:
    return f"{value.num_questions:,} question{'' if value.num_questions == 1 else 's'}"
