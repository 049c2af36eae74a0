"""What the names on a replay's page mean, for readers who meet them there first: only those that the page has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RULES = {
    "adaptive-consistency": "stops when the leading answer is surely ahead of the second (posterior of a Beta law)",
    "esc": "stops when the latest answers in a row are one answer; the threshold says how many",
    "sprt": "stops when a likelihood-ratio test finds the leading answer ahead of the second",
    "entropy": "stops when the base model's next-token entropies over the responses are low",
    "self-confidence": "stops when the base model's highest next-token probabilities over the responses are high",
    "uab": "shares a total of trajectories out over the questions by how unlikely the first response was",
    "random": "goes on by chance: what a rule has to beat at the same cost",
}
_SOURCES = {
    "plain": "samples of the model at temperature 1, without Metropolis-Hastings steps",
    "lowtemp": "samples at a low temperature, without Metropolis-Hastings steps",
}


def explained(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of policies and columns, each with what it means in words."""
    last = report["ks"][-1]
    policies = report["policies"]
    found = [
        (
            f"fixed-k{report['ks'][0]} … fixed-k{last}",
            "every question gets that many trajectories of power sampling; their answers vote",
        )
    ]
    if any(policy["kind"] == "controller" for policy in policies):
        names = ", ".join(policy["policy"] for policy in policies if policy["kind"] == "controller")
        found.append((names, "a trained controller, asked after each checkpoint whether the trajectories are enough"))
    named = {policy["name"] for policy in policies if policy["kind"] in ("rule", "chance")}
    found += [(name, text) for name, text in _RULES.items() if name in named]
    if any(policy["kind"] == "oracle" for policy in policies):
        found.append(("oracle", "knows the answer and stops at the smallest k that is right: a bound, not a policy"))
    series = {policy["series"] for policy in policies}
    found += [(name, f"{text}; their answers vote") for name, text in _SOURCES.items() if name in series]
    found += [
        ("tokens", "all that was drawn for a question, also what is in no response; the cost that is alike everywhere"),
        ("p_enough, threshold", "how likely k is enough; a policy goes on while 1 − p_enough is above its threshold"),
        (
            "operating point",
            f"a cheap threshold at which other questions exclude a loss of the margin against k = {last}; "
            "with too few of them for that, at which they lose about nothing",
        ),
        ("order", "trajectories are exchangeable, so every number is a mean over several orders of the same ones"),
    ]
    if report["clock"] is not None:
        found.append(
            ("time, calibrated s", "tokens times seconds per token, measured once with all rows busy, and the prompt")
        )
    return found
