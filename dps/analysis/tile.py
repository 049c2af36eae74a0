"""The tile that a page begins with: which policy, its accuracy and tokens, what it saves, and whether n is enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dps.analysis.findings import rows_of
from dps.analysis.words import between, interval, number, percent, points_of, questions, signed_points
from dps.estimates import FEWEST, LARGEST_STDERR, Estimate, fewest_questions

Entry = Mapping[str, Any]


def tile(result: Entry) -> dict[str, Any] | None:
    """Return the tile of a result: ``kicker``, ``name``, ``does``, ``rungs``, ``facts``, ``point``, ``more``.

    A fact is (what, the value, a sentence, whether it is in doubt). Where ``dps recommend`` has left nothing, the
    cheapest row that excludes a loss is taken, else the reference, else the most accurate row, and the tile says that
    these questions picked it. None where nothing has a grade.
    """
    if not result["num_graded"]:
        return None
    return _picked(result) if result["recommendation"] is None else _recommended(result, result["recommendation"])


def _recommended(result: Entry, one: Entry) -> dict[str, Any]:
    measured, target, folds = one["measured"], one["target"], len(one["folds"])
    count, _, enough = one["enough"].partition(": ")
    tests = f" to test for a loss of {points_of(target['margin'])}" if enough == "enough" else ""
    accuracy, tokens = measured["accuracy"], measured["tokens"]
    agree, is_target = one["num_folds_agree"], one["policy"]["label"] == target["name"]
    whose = "on questions that had no part in the choice"
    if 2 * agree <= folds:
        whose += f"; {agree} of {folds} folds chose this policy, so the numbers are those of this way of choosing"
    facts = [
        ("accuracy", percent(accuracy["value"]), f"{_ends(accuracy, percent)}, {whose}.", False),
        ("tokens a question", number(tokens["value"]), f"{_ends(tokens, number)}.", False),
        _saving(measured, target["name"], target["margin"], is_target=is_target, where="measured on other questions, "),
        ("questions", count, f"{enough[0].upper()}{enough[1:]}{tests}.", not tests),
    ]
    if (live := _live(result, one)) is not None:
        said = f"{_ends(live, percent)}, run on the {questions(result['num_graded'])} of this page"
        facts[-1] = ("questions of the choice", *facts[-1][1:])
        said += f" with {number(live['tokens'])} tokens each."
        facts.append(("live accuracy", percent(live["accuracy"]), said, False))
    ends = {name: accuracy[name] for name in ("low", "high")}
    return {
        "kicker": "Recommended policy",
        "name": one["policy"]["label"],
        "does": one["words"][0],
        "rungs": one["policy"]["ladder"],
        "facts": facts,
        "more": [*one["words"][1:], *one["notes"]],
        "point": live or {"accuracy": accuracy["value"], "tokens": tokens["value"], **ends},
    }


def _live(result: Entry, one: Entry) -> Entry | None:
    """Return the row of an evaluation that ran the recommended policy."""
    rows = [
        row
        for policy in result["policies"]
        if one["name"] in (policy["series"], policy["policy"]) and result["kind"] == "evaluation"
        for row in rows_of(policy)
        if row["accuracy"] is not None
    ]
    return rows[-1] if rows else None


def _picked(result: Entry) -> dict[str, Any]:
    rows = [
        (policy, row)
        for policy in result["policies"]
        if policy["family"] not in ("oracle", "chance")
        for row in rows_of(policy)
    ]
    reference, margin = result["reference"], result["margin"]
    ready = [pair for pair in rows if pair[1].get("no_loss")]
    if reference is None:
        policy, row = max(rows, key=lambda pair: (round(pair[1]["accuracy"], 12), -pair[1]["tokens"]))
        does = f"The most accurate of {len(rows)} rows."
    elif ready:
        policy, row = min(ready, key=lambda pair: pair[1]["tokens"])
        does = f"The cheapest of {len(rows)} rows that excludes a loss of {points_of(margin)} against {reference}."
    else:
        policy, row = next(pair for pair in rows if pair[1]["name"] == reference)
        does = f"The reference: no cheaper row excludes a loss of {points_of(margin)} against it."
    stderr = row["tokens_stderr"]
    tokens = Estimate(row["tokens"], float("nan") if stderr is None else stderr, result["num_questions"])
    facts = [
        ("accuracy", percent(row["accuracy"]), f"{_ends(row, percent)}, on the questions that picked it.", False),
        ("tokens a question", number(row["tokens"]), f"{_ends(tokens.plain(), number)}.", False),
    ]
    if reference is not None:
        measured = {"tokens_ratio": row["tokens_ratio"], "difference": row["accuracy_difference"], **row}
        facts.append(_saving(measured, reference, margin, is_target=row["name"] == reference))
    facts.append(("questions", f"{result['num_graded']:,}", *_enough(result, row)))
    return {
        "kicker": "Picked on these questions",
        "name": row["name"],
        "does": f"{does} dps recommend measures the choice on other questions.",
        "rungs": policy["ladder"] or [row["name"].removeprefix(f"{policy['name']} of ")],
        "facts": facts,
        "more": [],
        "point": row,
    }


def _ends(entry: Entry, form: Any) -> str:
    low, high = entry["low"], entry["high"]
    if low is None or low != low:
        return "No interval"
    return f"95 % interval {form(low).removesuffix(' %')} to {form(high)}"


def _saving(
    measured: Entry, target: str, margin: float, *, is_target: bool, where: str = ""
) -> tuple[str, str, str, bool]:
    """Return what is saved beside the target, and whether a loss is excluded; ``where`` that is measured."""
    if is_target:
        return (f"beside {target}", "nothing saved", "This is the reference itself.", False)
    ratio, difference, safe = measured["tokens_ratio"], measured["difference"], measured["no_loss"]
    change = 100 * (1 - ratio["value"])
    saved = f"{abs(change):.0f} % {'fewer' if change >= 0 else 'more'} tokens"
    shown = f"{signed_points(difference['value'])} points {between(difference)}".rstrip()
    loss = f"{where}a loss of {points_of(margin)} is {'' if safe else 'not '}excluded"
    return (f"beside {target}", saved, f"{interval(ratio)} of its tokens; {shown}: {loss}.", not safe)


def _enough(result: Entry, row: Entry) -> tuple[str, bool]:
    """Return whether the questions are enough, in a sentence, and whether that is in doubt."""
    count, least = result["num_graded"], fewest_questions(result["margin"])
    stderr = (row.get("accuracy_difference") or row)["stderr"]
    if least is not None and count < least and not row.get("no_loss"):
        return f"Too few to exclude a loss of {points_of(result['margin'])}: that takes {least:,}.", True
    if count < FEWEST or not (stderr or 0.0) <= LARGEST_STDERR:
        return "Too few to say that a policy is as good as another.", True
    if least is not None and count < least:
        return f"Enough here, where the policy is ahead; between equals it takes {least:,}.", False
    return f"Enough to test for a loss of {points_of(result['margin'])}.", False
