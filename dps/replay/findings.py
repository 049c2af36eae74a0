"""What a replay found, in sentences: pure functions of what ``replay.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    return f"; these data cannot decide, about {needed:,} questions would if the difference is real"


def _best(report: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """Return the policy of a kind that saves most at no loss."""
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
        row = min(rows, key=lambda m: m["difference"]["value"])
        tokens = f"{row['rival_tokens']:,.0f} tokens a question where {name} spends {row['tokens']:,.0f}"
        if row["verdict"] == "below":
            wins.append(
                f"Self-consistency over cheap samples wins: {row['rival']} reaches {100 * row['rival_accuracy']:.1f} % "
                f"with {tokens}, {name} {100 * row['accuracy']:.1f} % "
                f"({points(row['difference']['value'])} points, {between(row['difference'])})."
            )
        elif row["verdict"] == "undecided" and row["rival_tokens"] < CHEAPER * row["tokens"]:
            found.append(
                f"Self-consistency over cheap samples is not told apart from {name} at "
                f"{row['rival_tokens'] / row['tokens']:.2f} of its tokens: {row['rival']} reaches "
                f"{100 * row['rival_accuracy']:.1f} % with {tokens}, {name} {100 * row['accuracy']:.1f} % "
                f"({points(row['difference']['value'])} points, {between(row['difference'])}{decided(row)})."
            )
        else:
            word = "ahead of" if row["verdict"] == "above" else "not told apart from"
            found.append(
                f"{name} is {word} the best self-consistency over cheap samples ({row['rival']}, with {tokens}): "
                f"{points(row['difference']['value'])} points, {between(row['difference'])}{decided(row)}."
            )
    return wins + found


def _headline(report: Mapping[str, Any]) -> list[str]:
    """Say what each controller saves at no loss."""
    found = []
    last = report["ks"][-1]
    for policy in report["policies"]:
        at = policy.get("operating_point")
        if policy["kind"] != "controller" or at is None:
            continue
        ratio, difference = at["tokens_ratio"], at["accuracy_difference"]
        loss = _loss(at, report["margin"])
        found.append(
            f"{policy['policy']} needs {ratio['value']:.2f} of the tokens of k = {last} [{ratio['low']:.2f}, "
            f"{ratio['high']:.2f}], {1 / ratio['value']:.1f} times fewer, at {loss}: "
            f"{points(difference['value'])} points {between(difference)}."
        )
    return found


def _loss(at: Mapping[str, Any], margin: float) -> str:
    """Say in words what an operating point shows of the accuracy that it gives up."""
    point = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
    if not at["no_loss"]:
        return f"a loss that may be above {point}"
    return f"a loss of less than {point}" if at["accuracy_difference"]["high"] < 0 else "no accuracy loss"


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
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}] at {points(difference['value'])} points {between(difference)}."
        )
    return found


def _rules(report: Mapping[str, Any]) -> list[str]:
    """Compare the best controller with every rule at equal tokens."""
    best = _best(report, "controller")
    rule = _best(report, "rule")
    found = []
    if rule is not None:
        ratio = rule["operating_point"]["tokens_ratio"]
        found.append(
            f"Of the rules that need no training, {rule['policy']} saves most at no loss: {ratio['value']:.2f} of the "
            f"tokens [{ratio['low']:.2f}, {ratio['high']:.2f}]."
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
    worst = min(rows, key=lambda m: m["difference"]["value"])
    word = {"above": "ahead of", "below": "behind", "undecided": "not told apart from"}[worst["verdict"]]
    found.append(
        f"At equal tokens {best['policy']} is {word} the strongest rule over the same trajectories ({worst['rival']}): "
        f"{points(worst['difference']['value'])} points {between(worst['difference'])}{decided(worst)}."
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
