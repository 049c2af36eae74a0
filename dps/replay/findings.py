"""What a replay found, in sentences: pure functions of what ``replay.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dps.estimates import fewest_questions
from dps.report import words

CHEAPER = 0.9
"""A rival that has no more samples and spends less than this share of a policy's tokens is told as the cheaper one."""


def findings(report: Mapping[str, Any]) -> list[str]:
    """Return the findings, the one that could change a reader's mind first.

    If self-consistency over cheap samples is ahead at equal tokens, that is the first sentence.
    """
    found = [*_rivals(report), *_headline(report), *_own(report), *_rules(report), *_fixed(report)]
    return [sentence for sentence in found if sentence]


def points(value: float) -> str:
    """Return an accuracy difference in percentage points with its sign; 0.0 has none."""
    return words.signed_points(value, None)


def between(interval: Mapping[str, float]) -> str:
    """Return an interval of percentage points."""
    return f"[{points(interval['low'])}, {points(interval['high'])}]"


def decided(entry: Mapping[str, Any]) -> str:
    """Return how far a difference is decided, in words."""
    if entry["verdict"] != "undecided":
        return ""
    needed = entry.get("questions_needed")
    if needed is None:
        return "; these data cannot decide"
    return f"; these data cannot decide, about {needed:,} questions would in 80 % of cases if the difference is real"


def _together(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a comparison with the interval that allows for its having been picked out of several.

    Reports of earlier versions have none; then it is the comparison as it stands.
    """
    together = row.get("together")
    if together is None:
        return {**row, "picked": ""}
    picked = f", the strongest of {together['rivals']} on these questions" if together["rivals"] > 1 else ""
    return {**row, "difference": together, "verdict": together["verdict"], "picked": picked}


def _measured(row: Mapping[str, Any]) -> str:
    """Return the difference of a comparison that was picked out, its interval, and out of how many."""
    return f"{points(row['difference']['value'])} points, {between(row['difference'])}{row['picked']}"


def _best(report: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """Return the policy of a kind that saves most where a loss of the margin is excluded."""
    ready = [
        p
        for p in report["policies"]
        if p["kind"] == kind and p["series"] == "power" and p.get("operating_point", {}).get("no_loss")
    ]
    return min(ready, key=lambda p: p["operating_point"]["tokens_ratio"]["value"], default=None)


def _rivals(report: Mapping[str, Any]) -> list[str]:
    """Say how self-consistency over cheap samples does at the tokens of power sampling: where it wins, first."""
    best = _best(report, "controller") or _best(report, "rule")
    names = [f"fixed-k{report['ks'][-1]}"] + ([best["policy"]] if best is not None else [])
    wins, found = [], []
    for name in names:
        rows = [m for m in report["matched_tokens"] if m["policy"] == name and m["rival_series"] != "power"]
        if not rows:
            continue
        row = _together(min(rows, key=lambda m: m["difference"]["value"]))
        tokens = f"{row['rival_tokens']:,.0f} tokens a question where {name} spends {row['tokens']:,.0f}"
        if row["verdict"] == "below":
            wins.append(
                f"Self-consistency over cheap samples wins: {row['rival']} reaches {100 * row['rival_accuracy']:.1f} % "
                f"with {tokens}, {name} {100 * row['accuracy']:.1f} % "
                f"({_measured(row)})."
            )
        elif row["verdict"] == "undecided" and row["rival_tokens"] < CHEAPER * row["tokens"]:
            found.append(
                f"Self-consistency over cheap samples is not told apart from {name} at "
                f"{row['rival_tokens'] / row['tokens']:.2f} of its tokens: {row['rival']} reaches "
                f"{100 * row['rival_accuracy']:.1f} % with {tokens}, {name} {100 * row['accuracy']:.1f} % "
                f"({_measured(row)}{decided(row)})."
            )
        else:
            word = "ahead of" if row["verdict"] == "above" else "not told apart from"
            found.append(
                f"{name} is {word} the best self-consistency over cheap samples ({row['rival']}, with {tokens}): "
                f"{_measured(row)}{decided(row)}."
            )
    return wins + found


def _headline(report: Mapping[str, Any]) -> list[str]:
    """Say what each controller saves, and what is shown of the accuracy that it gives up."""
    found = []
    last = report["ks"][-1]
    for policy in report["policies"]:
        at = policy.get("operating_point")
        if policy["kind"] != "controller" or at is None:
            continue
        ratio, difference = at["tokens_ratio"], at["accuracy_difference"]
        found.append(
            f"{policy['policy']} needs {ratio['value']:.2f} of the tokens of k = {last} [{ratio['low']:.2f}, "
            f"{ratio['high']:.2f}], {1 / ratio['value']:.1f} times fewer, at {_loss(at, report)}: "
            f"{points(difference['value'])} points {between(difference)}{_fixed_too(at, report)}."
        )
    return found


def _loss(at: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Say in words what an operating point shows of the accuracy that it gives up."""
    margin, count = report["margin"], report["num_questions"]
    point = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
    if at["no_loss"]:
        return f"a loss of less than {point}"
    least = fewest_questions(margin)
    if least is not None and count < least:
        return f"a loss that may be above {point} ({count:,} questions are too few to exclude it, {least:,} at least)"
    return f"a loss that may be above {point}"


def _fixed_too(at: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Name the largest fixed k that spends no more and shows the same, where there is one."""
    if not at["no_loss"]:
        return ""
    fixed = next(p for p in report["policies"] if p["kind"] == "fixed" and p["series"] == "power")
    same = [p for p in fixed["curve"] if p.get("no_loss") and p["tokens"] <= at["tokens"]["value"]]
    return f"; fixed k = {same[-1]['threshold']:g} shows the same with no more tokens" if same else ""


def _own(report: Mapping[str, Any]) -> list[str]:
    """Say what trained controllers give at the thresholds that they came with."""
    found = []
    for policy in report["policies"]:
        at = policy.get("own_threshold")
        if at is None:
            continue
        ratio, difference = at["tokens_ratio"], at["accuracy_difference"]
        tokens = f"{ratio['value']:.2f} of the tokens of k = {report['ks'][-1]}"
        found.append(
            f"At the threshold that it came with ({at['threshold']:.3g}), {policy['policy']} needs {tokens} "
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}] at {points(difference['value'])} points {between(difference)}"
            f"{'' if at.get('no_loss', True) else ', a loss that may be above the margin'}."
        )
    return found


def _rules(report: Mapping[str, Any]) -> list[str]:
    """Compare the best controller with every rule at equal tokens."""
    best = _best(report, "controller")
    rule = _best(report, "rule")
    found = []
    if rule is not None:
        at = rule["operating_point"]
        ratio = at["tokens_ratio"]
        found.append(
            f"Of the rules that need no training, {rule['policy']} saves most at {_loss(at, report)}: "
            f"{ratio['value']:.2f} of the tokens [{ratio['low']:.2f}, {ratio['high']:.2f}]."
        )
    if best is None:
        return found
    rows = [
        m
        for m in report["matched_tokens"]
        if m["policy"] == best["policy"] and m["rival_series"] == "power" and m["rival_kind"] in ("rule", "chance")
    ]
    if not rows:
        return found
    worst = _together(min(rows, key=lambda m: m["difference"]["value"]))
    word = {"above": "ahead of", "below": "behind", "undecided": "not told apart from"}[worst["verdict"]]
    found.append(
        f"At equal tokens {best['policy']} is {word} the strongest rule over the same trajectories ({worst['rival']}): "
        f"{_measured(worst)}{decided(worst)}."
    )
    return found


def _fixed(report: Mapping[str, Any]) -> list[str]:
    gain = report["k8_over_k2"]
    difference = gain["difference"]
    sure = difference["low"] > 0 or difference["high"] < 0
    entry = {"verdict": "above" if sure else "undecided", "questions_needed": gain["questions_needed"]}
    return [
        f"Fixed k = {gain['to']} against k = {gain['from']}: {points(difference['value'])} points {between(difference)}"
        f"{decided(entry)}."
    ]
