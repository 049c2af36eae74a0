"""What a result says first: plain sentences, computed from what ``report.json`` or ``replay.json`` holds.

Each function answers one question that a reader asks and says so where the data do not decide. Where cheaper sampling
wins at equal tokens, that comes first (METHOD section 6). "No loss" is shown, not assumed (section 7).
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
from dps.decide.ladder import POWER, Ladder
from dps.estimates import FEWEST, LARGEST_STDERR, fewest_questions

CHEAPER = 0.9
"""A rival that has no more samples and spends less than this share of a policy's tokens is told as the cheaper one."""
_VERDICTS = {"above": "ahead of", "below": "behind", "undecided": "not told apart from"}

Entry = Mapping[str, Any]


def findings(result: Entry) -> list[str]:
    """Return the sentences, the one that could change a reader's mind first; at least one."""
    if not result["num_graded"]:
        return ["No question has a grade, so there are no accuracies, only costs.", *_costs(result)]
    sentences = [
        *_rivals(result),
        *_cheaper_rivals(result),
        *(_best(result) if result["kind"] != "replay" else []),
        *_asking(result),
        *_own(result),
        *(_rules(result) if result["kind"] == "replay" else []),
        *_left(result),
        *_gain(result),
        *(mixing_finding(entry, several=len(result["mixing"]) > 1) for entry in result["mixing"]),
    ]
    too_little = "So few questions and responses say nothing of the policies: harvest more of both."
    return sentences or [too_little]


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
    """Return the difference of a row of :func:`_strongest`, its interval, and out of how many it was picked.

    ``of_rival``: the sentence is about the rival, and a sign is always that of the sentence's subject.
    """
    shown = row["difference"]
    if of_rival:
        shown = _turned(shown)
    return f"{signed_points(shown['value'])} points, {between(shown)}{row['picked']}"


def _turned(difference: Entry) -> Entry:
    """Return a difference the other way round."""
    return {"value": -difference["value"], "low": -difference["high"], "high": -difference["low"]}


def _loss(at: Entry, result: Entry) -> tuple[str, str]:
    """Say what a point shows of the accuracy that it gives up against the reference, and what holds for it alone."""
    margin, count = points_of(result["margin"]), result["num_graded"]
    if at["no_loss"]:
        return f"a loss of {margin} is excluded", _fixed_too(at, result)
    difference, least = at["accuracy_difference"], fewest_questions(result["margin"])
    not_excluded = f"a loss of {margin} is not excluded"
    if difference["high"] is not None and difference["high"] < 0:
        return f"below {result['reference']}, {not_excluded}", ""
    if least is not None and count < least:
        return f"{not_excluded} ({count:,} questions are too few, it takes at least {least:,})", ""
    if count < FEWEST or not (difference["stderr"] or 0.0) <= LARGEST_STDERR:
        return f"{not_excluded} (n is too small to say that nothing is lost)", ""
    needed = at["questions_needed"]
    return not_excluded, "" if needed is None else f"; about {needed:,} questions would decide it"


def _fixed_too(at: Entry, result: Entry) -> str:
    """Name the largest budget of the reference's series that spends no more and excludes a loss, where there is one."""
    rows = rows_of(result["policies"][0])
    same = [row for row in rows if row["no_loss"] and row["tokens"] <= at["tokens"]]
    return f"; {same[-1]['name']} shows the same with no more tokens" if same else ""


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
        and (family == "controller" or policy["series"] == result["main_series"])
        and policy["operating_point"] is not None
        and policy["operating_point"].get("no_loss")
    ]
    return min(ready, key=lambda policy: policy["operating_point"]["tokens_ratio"]["value"], default=None)


def _rivals(result: Entry) -> list[str]:
    """Say how other arms and ladders do at the tokens of the main one: where they win, first."""
    leading = _leading(result, "controller") or _leading(result, "rule")
    names = [name for name in (result["reference"], leading and leading["policy"]) if name]
    wins, others = [], []
    for name in names:
        rows = [m for m in result["matched_tokens"] if m["policy"] == name and m["rival_series"] != m["series"]]
        if not rows:
            continue
        row = _strongest(rows)
        what = _others(result, [row])
        tokens = f"{number(row['rival_tokens'])} tokens a question where {name} spends {number(row['tokens'])}"
        reached = (
            f"{row['rival']} reaches {percent(row['rival_accuracy'])} with {tokens}, {name} {percent(row['accuracy'])}"
        )
        if row["verdict"] == "below":
            wins.append(f"{what.capitalize()} wins: {reached} ({_measured(row, of_rival=True)}).")
        elif row["verdict"] == "undecided" and row["rival_tokens"] < CHEAPER * row["tokens"]:
            others.append(
                f"{what.capitalize()} is not told apart from {name} at "
                f"{row['rival_tokens'] / row['tokens']:.2f} of its tokens: {reached} "
                f"({_measured(row, of_rival=True)}{_decided(row)})."
            )
        else:
            more = "; what more samples would reach was not measured" if row["rival_exhausted"] else ""
            others.append(
                f"{name} is {_VERDICTS[row['verdict']]} the best {what.removeprefix('an')} ({row['rival']}, "
                f"with {tokens}): {_measured(row)}{_decided(row)}{more}."
            )
    return wins + _other_wins(result, names) + others


def _others(result: Entry, rows: Sequence[Entry]) -> str:
    """Return what the rivals of these rows are: cheap samples, where power sampling stands alone against none of it."""
    arms: dict[str, set[str]] = {}
    for policy in result["policies"]:
        arms.setdefault(policy["series"], set()).update(policy["arms"])
    rivals = set().union(*(arms.get(row["rival_series"], ()) for row in rows))
    cheap = arms.get(result["main_series"], set()) <= {POWER} and POWER not in rivals
    return "self-consistency over cheap samples" if cheap else "another arm or ladder"


def _other_wins(result: Entry, told: Sequence[str]) -> list[str]:
    """Name the other rows of the main ladder that another arm or ladder wins against at equal tokens."""
    lost = [
        row
        for row in result["matched_tokens"]
        if row["rival_series"] != row["series"] and row["verdict"] == "below" and row["policy"] not in told
    ]
    if not lost:
        return []
    policies, rivals = (listing(dict.fromkeys(row[name] for row in lost)) for name in ("policy", "rival"))
    cheap = "cheap samples" if _others(result, lost).endswith("samples") else "other arms and ladders"
    return [f"At equal tokens {cheap} ({rivals}) are ahead of {policies}, each comparison judged on its own."]


def _cheaper_rivals(result: Entry) -> list[str]:
    """Name each other arm's cheapest budget that spends less than the reference and excludes a loss against it.

    The budgets are tried from the dearest down until one does not exclude the loss, so that none is named for its luck.
    """
    sentences = []
    for policy in result["policies"]:
        if policy["family"] != "fixed" or policy is result["policies"][0] or result["reference"] is None:
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
    """Say which policy is the most accurate, and out of how many that was picked."""
    rows = [row for policy in result["policies"] for row in rows_of(policy)]
    # Of equally accurate policies the cheapest is the best.
    best = max(rows, key=lambda row: (round(row["accuracy"], 12), -row["tokens"]))
    picked = f"The highest of {len(rows)} accuracies, picked on these questions: " if len(rows) > 1 else ""
    return [
        f"{picked}{best['name']} with {percent_with_error(best['accuracy'], best['stderr'])} % on "
        f"{questions(result['num_graded'])} and {number(best['tokens'])} tokens a question."
    ]


def _asking(result: Entry) -> list[str]:
    """Say what each controller, and each live rule, saves, what that costs, and what fixed budgets give for as much."""
    told = ("controller",) if result["kind"] == "replay" else ("controller", "rule")
    points = {
        policy["policy"]: at
        for policy in result["policies"]
        if policy["family"] in told and (at := policy["operating_point"]) is not None and "tokens_ratio" in at
    }
    ends = {p["policy"]: str(Ladder.parse(p["ladder"]).maximum) for p in result["policies"] if p["policy"] in points}
    always = [name for name, at in points.items() if list(at["share_at_k"]) == [ends[name]]]
    saving = {name: at for name, at in points.items() if name not in always}
    sentences = [*_savings(saving, result), *_beside_fixed(list(saving), result)]
    if always:
        saved = "it" if len(always) == 1 else "they"
        sentences.append(f"{listing(always)} always went on to the ladder's end, so {saved} saved nothing.")
    return sentences


def _savings(points: Mapping[str, Entry], result: Entry) -> list[str]:
    """Say what share of the tokens points need and what they lose: one sentence for all that show the same."""
    groups: dict[str, list[str]] = {}
    for name, at in sorted(points.items(), key=lambda one: (not one[1]["no_loss"], one[1]["tokens_ratio"]["value"])):
        shown, alone = _loss(at, result)
        group = groups.setdefault(shown, [])
        needs = f"{at['tokens_ratio']['value']:.2f}"
        needs = f" {needs}" if group else f" needs {needs} of the tokens of {result['reference']}"
        difference = at["accuracy_difference"]
        group.append(f"{name}{needs} ({signed_points(difference['value'])} points {between(difference)}{alone})")
    return [f"{listing(group)}: {shown}." for shown, group in groups.items()]


def _beside_fixed(names: Sequence[str], result: Entry) -> list[str]:
    """Say how policies do against the reference's series of fixed budgets at equal tokens, in one sentence."""
    if result["reference"] is None:
        return []
    by_verdict: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for row in result["matched_tokens"]:
        if row["policy"] in names and row["rival"] == result["policies"][0]["policy"]:
            difference = row["difference"]
            shown = f"{row['policy']} ({signed_points(difference['value'])} points {between(difference)})"
            by_verdict[row["verdict"]].append(shown)
    budgets = f"fixed {result['policies'][0]['policy']} budgets"
    told = [f"{_VERDICTS[verdict]} {budgets}: {listing(rows)}" for verdict, rows in by_verdict.items() if rows]
    if not told:
        return []
    alone = ", each comparison judged on its own" if sum(map(len, by_verdict.values())) > 1 else ""
    return [f"At equal tokens {'; '.join(told)}{alone}."]


def _own(result: Entry) -> list[str]:
    """Say what trained controllers give at the thresholds that they came with."""
    points = {
        f"{policy['policy']} (threshold {at['threshold']:.3g})": at
        for policy in result["policies"]
        if (at := policy["own_threshold"]) is not None
    }
    return [f"As trained, {sentence}" for sentence in _savings(points, result)]


def _rules(result: Entry) -> list[str]:
    """Say how the best rule does, and how the best controller does against every rule at equal tokens."""
    best, rule = _leading(result, "controller"), _leading(result, "rule")
    sentences = []
    if rule is not None:
        at = rule["operating_point"]
        count = sum((p["family"], p["series"]) == ("rule", result["main_series"]) for p in result["policies"])
        sentences.append(
            f"Of the {count} rules that need no training, {rule['policy']} saves most, picked on these questions: "
            f"{interval(at['tokens_ratio']).replace(' [', ' of the tokens [')} at "
            f"{signed_points(at['accuracy_difference']['value'])} points {between(at['accuracy_difference'])}, "
            f"{_loss(at, result)[0]}."
        )
    worst = None if best is None else _strongest_rule(result, best["policy"])
    if worst is not None:
        sentences.append(
            f"At equal tokens {worst['policy']} is {_VERDICTS[worst['verdict']]} the strongest rule over the same "
            f"responses ({worst['rival']}): {_measured(worst)}{_decided(worst)}."
            f"{_other_controllers(result, worst['policy'])}"
        )
    return sentences


def best_rule(policies: Sequence[Entry], *series: str) -> str | None:
    """Return which rule of some series saves most without a loss, or is the most accurate where none excludes one."""
    rules = [
        p for p in policies if p["family"] == "rule" and p["series"] in series and p["operating_point"] is not None
    ]
    ready = [p for p in rules if p["operating_point"].get("no_loss")]
    saving = min(ready, key=lambda p: p["operating_point"]["tokens"], default=None)
    if saving is None and rules:
        saving = max(rules, key=lambda p: (p["operating_point"]["accuracy"], -p["operating_point"]["tokens"]))
    return saving and saving["policy"]


def _left(result: Entry) -> list[str]:
    """Say how far the best rule on votes could still get at the accuracy of each series' best rule."""
    sentences = []
    for entry in result["left"]:
        rule, share, held_out = entry["policy"], entry["share"], entry["held_out"]
        ends = "" if share["low"] is None else f" [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
        votes = (
            f"The best rule on votes, fitted to these very questions, would go {100 * share['value']:.0f} %{ends} of "
            f"that way ({number(entry['votes_tokens'])})"
            if share["value"] > 0
            else "No rule on votes gets there with fewer tokens, not even one fitted to these very questions"
        )
        of_others = ""
        if held_out is not None:
            shown = _turned(held_out["difference"])
            of_others = (
                f"; fitted to others (votes-dp), it gives {signed_points(shown['value'])} points "
                f"{between(shown)} at the tokens of {rule}"
            )
        sentences.append(
            f"What is left to save at the accuracy of {rule} ({percent(entry['accuracy'])}, {number(entry['tokens'])} "
            f"tokens a question): perfect knowledge would spend {number(entry['oracle_tokens'])}. {votes}{of_others}."
        )
    return sentences


def _strongest_rule(result: Entry, policy: str) -> Entry | None:
    """Return the comparison of a policy with the rule on the same ladder that does best at its tokens."""
    rows = [
        row
        for row in result["matched_tokens"]
        if (row["policy"], row["rival_series"]) == (policy, row["series"]) and row["rival_family"] in ("rule", "chance")
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
        f"{gain['to']} against {gain['from']}: {signed_points(difference['value'])} points "
        f"{between(difference)} for {gain['tokens_times']:.1f} times the tokens{_decided(entry)}."
    ]
