"""What a result says first: plain sentences, computed from what ``report.json`` or ``replay.json`` holds.

Each function answers one question that a reader asks and says so where the data do not decide. Where cheap samples win
at equal tokens, that comes first (METHOD section 6). "No loss" is shown, not assumed (section 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dps.analysis.mixing import mixing_finding
from dps.analysis.words import (
    between,
    interval,
    listing,
    number,
    percent,
    percent_with_error,
    points_of,
    questions,
    signed_points,
)
from dps.estimates import FEWEST, LARGEST_STDERR, fewest_questions

CHEAPER = 0.9
"""A rival that has no more samples and spends less than this share of a policy's tokens is told as the cheaper one."""
_VERDICTS = {"above": "ahead of", "below": "behind", "undecided": "not told apart from"}

Entry = Mapping[str, Any]


def findings(result: Entry) -> list[str]:
    """Return the sentences, the one that could change a reader's mind first."""
    if not result["num_graded"]:
        return ["No question has a grade, so there are no accuracies, only costs.", *_costs(result)]
    return [
        *_rivals(result),
        *_cheaper_rivals(result),
        *(_best(result) if result["kind"] != "replay" else []),
        *_asking(result),
        *_own(result),
        *(_rules(result) if result["kind"] == "replay" else []),
        *_gain(result),
        *(mixing_finding(entry, several=len(result["mixing"]) > 1) for entry in result["mixing"]),
    ]


def rows_of(policy: Entry) -> list[Entry]:
    """Return a policy's rows of the table: its operating point, or its points that have a name."""
    if policy["operating_point"] is not None:
        return [policy["operating_point"]]
    return [point for point in policy["curve"] if point["name"] is not None]


# -- words of a comparison ---------------------------------------------------------------------------------------------


def _decided(entry: Entry) -> str:
    """Return how far a difference is decided, in words."""
    if entry["verdict"] != "undecided":
        return ""
    if entry["questions_needed"] is None:
        return "; these data cannot decide"
    return (
        f"; these data cannot decide, about {entry['questions_needed']:,} questions would in 80 % of cases if the "
        "difference is real"
    )


def _strongest(rows: Sequence[Entry]) -> Entry:
    """Return the comparison with the rival that does best, with the interval that allows for its being picked out."""
    row = min(rows, key=lambda entry: entry["difference"]["value"])
    together = row["together"]
    count = together["rivals"]
    picked = f", the strongest of {count} on these questions" if count > 1 else ""
    return {**row, "difference": together, "verdict": together["verdict"], "picked": picked}


def _measured(row: Entry, *, of_rival: bool = False) -> str:
    """Return the difference of a comparison that was picked out, its interval, and out of how many.

    Args:
        row: See :func:`_strongest`.
        of_rival: Whether the sentence is about the rival: a sign is always that of the sentence's subject.
    """
    found = row["difference"]
    if of_rival:
        found = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
    return f"{signed_points(found['value'])} points, {between(found)}{row['picked']}"


def _loss(at: Entry, result: Entry) -> str:
    """Say what a point shows of the accuracy that it gives up against the largest k."""
    margin, count = points_of(result["margin"]), result["num_graded"]
    if at["no_loss"]:
        return f"a loss of {margin} is excluded"
    difference, least = at["accuracy_difference"], fewest_questions(result["margin"])
    if difference["high"] is not None and difference["high"] < 0:
        return f"below k = {result['ks'][-1]}, a loss of {margin} is not excluded"
    if least is not None and count < least:
        return f"a loss of {margin} is not excluded ({count:,} questions are too few for that, it takes {least:,})"
    if count < FEWEST or not (difference["stderr"] or 0.0) <= LARGEST_STDERR:
        return f"a loss of {margin} is not excluded (n is too small to say that nothing is lost)"
    needed = at["questions_needed"]
    about = f" (about {needed:,} questions would decide a difference of this size)" if needed is not None else ""
    return f"a loss of {margin} is not excluded{about}"


# -- the sentences -----------------------------------------------------------------------------------------------------


def _costs(result: Entry) -> list[str]:
    """Say what live policies spend where nothing is graded."""
    return [
        f"{policy['policy']} spends {at['tokens_ratio']['value']:.2f} of the tokens of {result['reference']}."
        for policy in result["policies"]
        if (at := policy["operating_point"]) is not None and "tokens_ratio" in at
    ]


def _leading(result: Entry, family: str) -> Entry | None:
    """Return the policy of a family that saves most where a loss of the margin is excluded."""
    ready = [
        policy
        for policy in result["policies"]
        if policy["family"] == family
        and policy["series"] == "power"
        and policy["operating_point"] is not None
        and policy["operating_point"].get("no_loss")
    ]
    return min(ready, key=lambda policy: policy["operating_point"]["tokens_ratio"]["value"], default=None)


def _rivals(result: Entry) -> list[str]:
    """Say how self-consistency over cheap samples does at the tokens of power sampling: where it wins, first."""
    leading = _leading(result, "controller") or _leading(result, "rule")
    names = [name for name in (result["reference"], leading and leading["policy"]) if name]
    wins, others = [], []
    for name in names:
        rows = [m for m in result["matched_tokens"] if m["policy"] == name and m["rival_series"] != "power"]
        if not rows:
            continue
        row = _strongest(rows)
        tokens = f"{number(row['rival_tokens'])} tokens a question where {name} spends {number(row['tokens'])}"
        reached = (
            f"{row['rival']} reaches {percent(row['rival_accuracy'])} with {tokens}, {name} {percent(row['accuracy'])}"
        )
        if row["verdict"] == "below":
            wins.append(f"Self-consistency over cheap samples wins: {reached} ({_measured(row, of_rival=True)}).")
        elif row["verdict"] == "undecided" and row["rival_tokens"] < CHEAPER * row["tokens"]:
            others.append(
                f"Self-consistency over cheap samples is not told apart from {name} at "
                f"{row['rival_tokens'] / row['tokens']:.2f} of its tokens: {reached} "
                f"({_measured(row, of_rival=True)}{_decided(row)})."
            )
        else:
            more = "; what more samples would reach was not measured" if row["rival_exhausted"] else ""
            others.append(
                f"{name} is {_VERDICTS[row['verdict']]} the best self-consistency over cheap samples ({row['rival']}, "
                f"with {tokens}): {_measured(row)}{_decided(row)}{more}."
            )
    return wins + _other_wins(result, names) + others


def _other_wins(result: Entry, told: Sequence[str]) -> list[str]:
    """Name the other rows of power sampling that cheap samples win against at equal tokens."""
    lost = [
        row
        for row in result["matched_tokens"]
        if row["rival_series"] != "power" and row["verdict"] == "below" and row["policy"] not in told
    ]
    if not lost:
        return []
    policies, rivals = (listing(dict.fromkeys(row[name] for row in lost)) for name in ("policy", "rival"))
    return [f"At equal tokens cheap samples ({rivals}) are ahead of {policies}, each comparison judged on its own."]


def _cheaper_rivals(result: Entry) -> list[str]:
    """Name each rival's cheapest k that spends less than the largest fixed k and excludes a loss against it.

    The k's are tried from the dearest down until one does not exclude the loss, so that none is named for its luck.
    """
    sentences = []
    for policy in result["policies"]:
        if policy["family"] != "fixed" or policy["series"] == "power" or result["reference"] is None:
            continue
        named = None
        rows = [row for row in rows_of(policy) if row["tokens_ratio"]["value"] < 1]
        for row in sorted(rows, key=lambda row: -row["tokens"]):
            if not row["no_loss"]:
                break
            named = row
        if named is not None:
            sentences.append(
                f"{named['name']} reaches {percent(named['accuracy'])} with {interval(named['tokens_ratio'])} of the "
                f"tokens of {result['reference']}, and a loss of {points_of(result['margin'])} to it is excluded "
                f"({signed_points(named['accuracy_difference']['value'])} points "
                f"{between(named['accuracy_difference'])})."
            )
    return sentences


def _best(result: Entry) -> list[str]:
    """Say which policy is the most accurate, and which cheaper ones are not told apart from the largest fixed k."""
    rows = [row for policy in result["policies"] for row in rows_of(policy)]
    # Of equally accurate policies the cheapest is the best.
    best = max(rows, key=lambda row: (round(row["accuracy"], 12), -row["tokens"]))
    several = f" of the {len(rows)} policies" if len(rows) > 1 else ""
    text = (
        f"The highest accuracy{several} is that of {best['name']}: "
        f"{percent_with_error(best['accuracy'], best['stderr'])} % on {questions(result['num_graded'])}, with "
        f"{number(best['tokens'])} tokens a question."
    )
    reference = result["reference"]
    cheaper = [
        row
        for row in sorted(rows, key=lambda row: row["tokens"])
        if reference is not None
        and row["name"] not in (reference, best["name"])
        and row["tokens_ratio"]["value"] < 1
        and (row["accuracy_difference"]["high"] or 0.0) >= 0
    ]
    if cheaper:
        least = cheaper[0]
        text += (
            f" Of the policies that spend less than {reference}, {len(cheaper)} "
            f"{'is' if len(cheaper) == 1 else 'are'} not told apart from it; the cheapest is {least['name']} "
            f"({percent(least['accuracy'])} with {number(least['tokens'])} tokens)."
        )
    return [text]


def _asking(result: Entry) -> list[str]:
    """Say what each controller, and each live rule, saves and what is shown of the accuracy that it gives up."""
    sentences = []
    for policy in result["policies"]:
        at = policy["operating_point"]
        told = policy["family"] == "controller" or (result["kind"] != "replay" and policy["family"] == "rule")
        if not told or at is None or "tokens_ratio" not in at:
            continue
        ratio, difference = at["tokens_ratio"], at["accuracy_difference"]
        name, last = policy["policy"], result["ks"][-1]
        if list(at["share_at_k"]) == [str(last)]:
            sentences.append(f"{name} always went on to k = {last}, so it saved nothing.")
            continue
        sentences.append(
            f"{name} needs {interval(ratio).replace(' [', f' of the tokens of k = {last} [')}, "
            f"{1 / ratio['value']:.1f} times fewer, at {signed_points(difference['value'])} points "
            f"{between(difference)}: {_loss(at, result)}{_fixed_too(at, result)}{_at_its_tokens(policy, result)}."
        )
    return sentences


def _fixed_too(at: Entry, result: Entry) -> str:
    """Name the largest fixed k that spends no more and shows the same, where there is one."""
    if not at["no_loss"]:
        return ""
    power = next(p for p in result["policies"] if p["family"] == "fixed" and p["series"] == "power")
    same = [row for row in rows_of(power) if row["no_loss"] and row["tokens"] <= at["tokens"]]
    return f"; fixed k = {same[-1]['threshold']:g} shows the same with no more tokens" if same else ""


def _at_its_tokens(policy: Entry, result: Entry) -> str:
    """Say what fixed k gives at a policy's tokens."""
    for row in result["matched_tokens"]:
        if row["policy"] == policy["policy"] and row["rival"] == "fixed":
            low, high = row["between"]
            mixed = f"k = {low:g}" if not row["weight_above"] else f"k = {low:g} and {high:g} mixed"
            found = {"above": "{} beats it", "below": "{} loses to it", "undecided": "the two cannot be told apart"}
            who = "the rule" if policy["family"] == "rule" else "the controller"
            return (
                f"; fixed {mixed}, the same tokens, gives {percent(row['rival_accuracy'])}: "
                f"{found[row['verdict']].format(who)} ({signed_points(row['difference']['value'])} points "
                f"{between(row['difference'])})"
            )
    return ""


def _own(result: Entry) -> list[str]:
    """Say what trained controllers give at the thresholds that they came with."""
    sentences = []
    for policy in result["policies"]:
        at = policy["own_threshold"]
        if at is not None:
            tokens = interval(at["tokens_ratio"]).replace(" [", f" of the tokens of k = {result['ks'][-1]} [")
            sentences.append(
                f"At the threshold that it came with ({at['threshold']:.3g}), {policy['policy']} needs {tokens} at "
                f"{signed_points(at['accuracy_difference']['value'])} points {between(at['accuracy_difference'])}: "
                f"{_loss(at, result)}."
            )
    return sentences


def _rules(result: Entry) -> list[str]:
    """Say how the best rule does, and how the best controller does against every rule at equal tokens."""
    best, rule = _leading(result, "controller"), _leading(result, "rule")
    sentences = []
    if rule is not None:
        at = rule["operating_point"]
        sentences.append(
            f"Of the rules that need no training, {rule['policy']} saves most: "
            f"{interval(at['tokens_ratio']).replace(' [', ' of the tokens [')} at "
            f"{signed_points(at['accuracy_difference']['value'])} points {between(at['accuracy_difference'])}, "
            f"{_loss(at, result)}."
        )
    worst = None if best is None else _strongest_rule(result, best["policy"])
    if worst is not None:
        sentences.append(
            f"At equal tokens {worst['policy']} is {_VERDICTS[worst['verdict']]} the strongest rule over the same "
            f"trajectories ({worst['rival']}): {_measured(worst)}{_decided(worst)}."
            f"{_other_controllers(result, worst['policy'])}"
        )
    return sentences


def _strongest_rule(result: Entry, policy: str) -> Entry | None:
    """Return the comparison of a policy with the rule over power sampling that does best at its tokens."""
    rows = [
        row
        for row in result["matched_tokens"]
        if row["policy"] == policy and row["rival_series"] == "power" and row["rival_family"] in ("rule", "chance")
    ]
    return _strongest(rows) if rows else None


def _other_controllers(result: Entry, best: str) -> str:
    """Say the same of the other controllers, so that nobody takes the best one for all; nothing without others."""
    others: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for policy in result["policies"]:
        if policy["family"] == "controller" and policy["policy"] != best:
            row = _strongest_rule(result, policy["policy"])
            if row is not None:
                others[row["verdict"]].append(policy["policy"])
    told = [f"{_VERDICTS[verdict]} it: {listing(names)}" for verdict, names in others.items() if names]
    return f" Of the other controllers, each at its own tokens, {'; '.join(told)}." if told else ""


def _gain(result: Entry) -> list[str]:
    gain = result["gain"]
    if gain is None:
        return []
    difference = gain["difference"]
    sure = difference["low"] > 0 or difference["high"] < 0
    entry = {"verdict": "above" if sure else "undecided", "questions_needed": gain["questions_needed"]}
    return [
        f"Fixed k = {gain['to']} against k = {gain['from']}: {signed_points(difference['value'])} points "
        f"{between(difference)} for {gain['tokens_times']:.1f} times the tokens{_decided(entry)}."
    ]
