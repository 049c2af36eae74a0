"""What a report says first: plain sentences computed from the paired comparisons of ``statistics``.

Each function answers one question that a reader asks and says "cannot be told apart" where the data do not decide.
Where the cheap rival wins at matched tokens, :func:`findings` puts that first (METHOD section 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dps.analysis.report.mixing import FROZEN, SURE
from dps.analysis.report.statistics import Match, Outcomes, match_tokens, share_at_k
from dps.analysis.report.words import listing, nats, number, percent, percent_with_error, points, share, signed_points
from dps.decide import RULES
from dps.decide.thresholds import cheapest_without_loss
from dps.estimates import (
    FEWEST,
    MARGIN,
    Estimate,
    bounded,
    estimate,
    fewest_questions,
    loss_is_below,
    needed,
    ratio,
)

_SERIES = {"power": "Power sampling", "plain": "Plain sampling", "lowtemp": "Low-temperature sampling"}
_MARGIN = f"{100 * MARGIN:g} point"
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
    """Return the fixed k's of a series in order of k, those between the ones that the run names, too."""
    return sorted((o for o in outcomes if o.series == series and o.family == "fixed"), key=lambda o: o.k or 0)


def rivals_of(outcomes: Sequence[Outcomes]) -> list[str]:
    """Return the fixed series other than power sampling, in order."""
    return list(dict.fromkeys(o.series for o in outcomes if o.family == "fixed" and o.series != "power"))


def matches(outcomes: Sequence[Outcomes]) -> list[Match]:
    """Return every comparison at matched tokens: power policies with each rival, controllers with fixed k too."""
    found = []
    for policy in (o for o in outcomes if o.listed):
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
            f"{_questions(shown.difference)}; the largest difference is that of {shown.policy}, "
            f"{_points(shown.difference, signed=True)}."
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
    """Name the rival's cheapest k that spends less than the reference and excludes a loss of a point against it."""
    reference = reference_of(outcomes)
    if reference is None:
        return []
    cheaper = [o for o in curve_of(outcomes, series) if o.tokens.mean() < reference.tokens.mean()]
    graded = ~np.isnan(reference.correct) & ~np.any([np.isnan(o.correct) for o in cheaper], axis=0)
    if not cheaper or not graded.any():
        return []
    gaps = np.stack([o.correct - reference.correct for o in cheaper])[:, graded]
    chosen = cheapest_without_loss(gaps, np.stack([o.tokens for o in cheaper])[:, graded], MARGIN)
    if chosen is None:
        return []
    rival = cheaper[chosen]
    difference = paired(rival, reference)
    return [
        f"{rival.policy} reaches {percent(estimate(rival.correct).value)} with "
        f"{_share(ratio(rival.tokens, reference.tokens))} of the tokens of {reference.policy}, and a loss of {_MARGIN} "
        f"to it is excluded ({_points(difference, signed=True)})."
    ]


def best_finding(outcomes: Sequence[Outcomes]) -> list[str]:
    """Say which policy is the most accurate, and which cheaper ones cannot be told apart from it."""
    graded = [o for o in outcomes if o.listed and estimate(o.correct).num_questions]
    if not graded:
        return ["No question has a grade, so there are no accuracies, only costs."]
    # Of equally accurate policies the cheapest is the best.
    best = max(graded, key=lambda o: (round(estimate(o.correct).value, 12), -float(o.tokens.mean())))
    accuracy = estimate(best.correct)
    several = f" of the {len(graded)} policies" if len(graded) > 1 else ""
    text = (
        f"The highest accuracy{several} is that of {best.policy}: "
        f"{percent_with_error(accuracy.value, _stderr(accuracy))} % on "
        f"{_questions(accuracy)}, with {number(best.tokens.mean())} tokens a question."
    )
    if len(graded) == 1:
        return [text]
    level = [o for o in graded if o is not best and paired(best, o).sign == 0]
    cheaper = sorted((o for o in level if o.tokens.mean() < best.tokens.mean()), key=lambda o: float(o.tokens.mean()))
    if not level:
        text += " Its difference from every other policy is above 0 by the paired 95 % interval."
    elif cheaper:
        least = cheaper[0]
        shown = f"{least.policy} ({percent(estimate(least.correct).value)} with {number(least.tokens.mean())} tokens)"
        if len(cheaper) > 1:
            text += f" Of the policies that spend less, {len(cheaper)} cannot be told apart from it; the cheapest is"
            text += f" {shown}."
        else:
            text += f" Of the policies that spend less, only {shown} cannot be told apart from it."
    elif any(o.tokens.mean() < best.tokens.mean() for o in graded):
        text += " Every policy that spends fewer tokens is below it by the paired 95 % interval."
    return [text]


def more_trajectories_finding(outcomes: Sequence[Outcomes]) -> list[str]:
    """Say whether the largest fixed k beats k = 2 (or the smallest that was run)."""
    power = [o for o in curve_of(outcomes, "power") if o.listed]
    if len(power) < 2:
        return []
    large = power[-1]
    small = next((o for o in power if o.k == 2 and o is not large), power[0])
    difference, tokens = paired(large, small), ratio(large.tokens, small.tokens)
    if not difference.num_questions:
        return []
    pair = f"k = {large.k} with power sampling"
    cost = f"for {tokens.value:.1f} times the tokens"
    decided = f"decided at 95 % (paired, {_questions(difference)})"
    if difference.sign > 0:
        return [f"{pair} beats k = {small.k} by {_points(difference)}, {decided}, {cost}."]
    if difference.sign < 0:
        return [f"{pair} is worse than k = {small.k} by {_points(difference)}, {decided}."]
    return [
        f"{pair} and k = {small.k} cannot be told apart with {_questions(difference)}: the difference is "
        f"{_points(difference, signed=True)}, {cost}{_would_decide(difference)}."
    ]


def controller_finding(policy: Outcomes, outcomes: Sequence[Outcomes], reference: Outcomes) -> str:
    """Say how a controller or rule does against the largest fixed k, and against a fixed k of the same tokens."""
    difference, tokens = paired(policy, reference), ratio(policy.tokens, reference.tokens)
    cost = f"at {_share(tokens)} of its tokens (mean k {policy.num_trajectories.mean():.1f})"
    if not difference.num_questions:
        return f"{policy.policy} spends {_share(tokens)} of the tokens of {reference.policy}; no answer has a grade."
    fixed = curve_of(outcomes, "power")
    text = f"{_against_reference(policy, reference, difference, fixed)}, {cost}"
    if list(share_at_k(policy)) == [reference.k]:
        return f"{text}: it always went on to k = {reference.k}, so it saved nothing."
    match = match_tokens(policy, fixed)
    if match is None or not match.difference.num_questions:
        return f"{text}."
    mixed = f"k = {match.k_below}" if match.weight_above == 0 else f"k = {match.k_below} and {match.k_above} mixed"
    compared = f"fixed {mixed}, the same tokens, gives {percent(match.rival_accuracy)}"
    who = "the rule" if policy.policy in RULES else "the controller"
    words = {1: f"{who} beats it", -1: f"{who} loses to it", 0: "the two cannot be told apart"}
    return f"{text}; {compared}: {words[match.difference.sign]} ({_points(match.difference, signed=True)})."


def _against_reference(policy: Outcomes, reference: Outcomes, difference: Estimate, fixed: Sequence[Outcomes]) -> str:
    """Say whether a policy is above, below, as good as the largest fixed k, or whether that cannot be said.

    "As good as" is shown, not assumed (METHOD section 7): the paired interval excludes a loss of a point, and there are
    questions enough that it might not have. A fixed k that shows the same with no more tokens is named.
    """
    measured = f"{_points(difference, signed=True)}, paired over {_questions(difference)}"
    name, other = policy.policy, reference.policy
    if difference.sign > 0:
        return f"{name} is above {other} ({measured})"
    if difference.sign < 0:
        return f"{name} falls below {other} ({measured})"
    if _no_loss(policy, reference):
        same = [o for o in fixed if o.tokens.mean() <= policy.tokens.mean() and _no_loss(o, reference)]
        also = f"; so it is for fixed k = {same[-1].k}" if same else ""
        return f"{name} and {other} cannot be told apart, and a loss of {_MARGIN} is excluded ({measured}{also})"
    if difference.too_few:
        least = max(FEWEST, fewest_questions(MARGIN) or 0)
        return (
            f"{name} and {other} cannot be told apart, and n is too small to say that nothing is lost ({measured}; "
            f"to exclude a loss of {_MARGIN} takes {least:,} questions at least)"
        )
    return (
        f"{name} and {other} cannot be told apart, but a loss of {_MARGIN} is not excluded "
        f"({measured}{_would_decide(difference)})"
    )


def _no_loss(policy: Outcomes, reference: Outcomes) -> bool:
    gaps = policy.correct - reference.correct
    return loss_is_below(gaps[~np.isnan(gaps)], MARGIN)


def _would_decide(difference: Estimate) -> str:
    """Say how many questions would decide a difference of this size, in 80 % of cases; nothing where none would."""
    count = needed(difference.value, difference.stderr, difference.num_questions)
    return "" if count is None else f"; about {count:,} questions would decide a difference of this size"


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
    return bounded(policy.correct - other.correct)


def verdict(difference: Estimate) -> str:
    """Return ``above``, ``below`` or ``undecided`` by the 95 % interval."""
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
