"""What a replay found, in sentences: pure functions of what ``replay.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dps.analysis.report import words
from dps.estimates import fewest_questions

_ENDS = ("low", "value", "high")
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


def _measured(row: Mapping[str, Any], *, of_rival: bool = False) -> str:
    """Return the difference of a comparison that was picked out, its interval, and out of how many.

    Args:
        row: The comparison, see :func:`_together`.
        of_rival: Whether the sentence is about the rival: a sign is always that of the sentence's subject.
    """
    difference = row["difference"]
    if of_rival:
        difference = {name: -difference[other] for name, other in zip(_ENDS, reversed(_ENDS), strict=True)}
    return f"{points(difference['value'])} points, {between(difference)}{row['picked']}"


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
                f"({_measured(row, of_rival=True)})."
            )
        elif row["verdict"] == "undecided" and row["rival_tokens"] < CHEAPER * row["tokens"]:
            found.append(
                f"Self-consistency over cheap samples is not told apart from {name} at "
                f"{row['rival_tokens'] / row['tokens']:.2f} of its tokens: {row['rival']} reaches "
                f"{100 * row['rival_accuracy']:.1f} % with {tokens}, {name} {100 * row['accuracy']:.1f} % "
                f"({_measured(row, of_rival=True)}{decided(row)})."
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
            f"{ratio['high']:.2f}], {1 / ratio['value']:.1f} times fewer, at {points(difference['value'])} points "
            f"{between(difference)}: {_loss(at, report)}{_fixed_too(at, report)}."
        )
    return found


def _loss(at: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Say in words what an operating point shows of the accuracy that it gives up."""
    margin, count = report["margin"], report["num_questions"]
    point = f"{100 * margin:g} point{'' if margin == 0.01 else 's'}"
    if at["no_loss"]:
        return f"a loss of {point} is excluded"
    least = fewest_questions(margin)
    if least is not None and count < least:
        return f"a loss of {point} is not excluded ({count:,} questions are too few for that, it takes {least:,})"
    return f"a loss of {point} is not excluded"


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
            f"{f': {_loss(at, report)}' if 'no_loss' in at else ''}."
        )
    return found


def _rules(report: Mapping[str, Any]) -> list[str]:
    """Compare the best controller with every rule at equal tokens, and say how the others do."""
    best = _best(report, "controller")
    rule = _best(report, "rule")
    found = []
    if rule is not None:
        at = rule["operating_point"]
        ratio = at["tokens_ratio"]
        found.append(
            f"Of the rules that need no training, {rule['policy']} saves most: {ratio['value']:.2f} of the tokens "
            f"[{ratio['low']:.2f}, {ratio['high']:.2f}] at {points(at['accuracy_difference']['value'])} points "
            f"{between(at['accuracy_difference'])}, {_loss(at, report)}."
        )
    if best is None:
        return found
    worst = _strongest_rule(report, best["policy"])
    if worst is None:
        return found
    found.append(
        f"At equal tokens {best['policy']} is {_VERDICTS[worst['verdict']]} the strongest rule over the same "
        f"trajectories ({worst['rival']}): {_measured(worst)}{decided(worst)}.{_other_controllers(report, best)}"
    )
    return found


_VERDICTS = {"above": "ahead of", "below": "behind", "undecided": "not told apart from"}


def _strongest_rule(report: Mapping[str, Any], policy: str) -> Mapping[str, Any] | None:
    """Return the comparison of a policy with the rule over power sampling that does best at its tokens."""
    rows = [
        m
        for m in report["matched_tokens"]
        if m["policy"] == policy and m["rival_series"] == "power" and m["rival_kind"] in ("rule", "chance")
    ]
    return _together(min(rows, key=lambda m: m["difference"]["value"])) if rows else None


def _other_controllers(report: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Say the same of the other controllers, so that nobody takes the best one for all; nothing without others."""
    others: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for policy in report["policies"]:
        if policy["kind"] == "controller" and policy["policy"] != best["policy"]:
            row = _strongest_rule(report, policy["policy"])
            if row is not None:
                others[row["verdict"]].append(policy["policy"])
    told = [f"{_VERDICTS[verdict]} it: {words.listing(names)}" for verdict, names in others.items() if names]
    return f" Of the other controllers, each at its own tokens, {'; '.join(told)}." if told else ""


def _fixed(report: Mapping[str, Any]) -> list[str]:
    gain = report["k8_over_k2"]
    difference = gain["difference"]
    sure = difference["low"] > 0 or difference["high"] < 0
    entry = {"verdict": "above" if sure else "undecided", "questions_needed": gain["questions_needed"]}
    return [
        f"Fixed k = {gain['to']} against k = {gain['from']}: {points(difference['value'])} points {between(difference)}"
        f"{decided(entry)}."
    ]
