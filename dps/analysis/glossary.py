"""What the names on a page mean, for readers who meet them there first: only those that the page has."""

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
    "plain": "samples of the model at temperature 1, without Metropolis-Hastings steps; their answers vote",
    "lowtemp": "samples at a low temperature, without Metropolis-Hastings steps; their answers vote",
}


def explained(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of policies and columns, each with what it means in words."""
    policies, ks, clock = result["policies"], result["ks"], result["clock"]
    entries = []
    if ks:
        name = f"fixed-k{ks[0]} … fixed-k{ks[-1]}" if len(ks) > 1 else f"fixed-k{ks[0]}"
        entries.append((name, "every question gets that many trajectories of power sampling; their answers vote"))
    controllers = ", ".join(policy["policy"] for policy in policies if policy["family"] == "controller")
    if controllers:
        entries.append((controllers, "a trained controller, asked after each checkpoint whether k is enough"))
    named = {policy["name"] for policy in policies}
    entries += [(name, text) for name, text in _RULES.items() if name in named]
    if "oracle" in named:
        entries.append(("oracle", "knows the answer and stops at the smallest k that is right: a bound, not a policy"))
    series = {policy["series"] for policy in policies}
    entries += [(name, text) for name, text in _SOURCES.items() if name in series]
    entries += [
        ("accuracy", "share of questions with the right answer, over the questions that have a grade; ± is one standard error, brackets are a 95 % interval, both over questions"),
        ("tokens", "all that was drawn for a question, also what is in no response; the cost that is alike everywhere"),
        ("mean k, k at the end", "how many trajectories questions got"),
        ("order", "trajectories are exchangeable, so fixed k and replays are means over several orders of the same ones"),
    ]  # fmt: skip
    if result["kind"] == "replay":
        entries += [
            (
                "p_enough, threshold",
                "how likely k is enough; a policy goes on while 1 − p_enough is above its threshold",
            ),
            (
                "operating point",
                f"a cheap threshold at which other questions exclude a loss of the margin against k = {ks[-1]}; "
                "with too few of them for that, at which they lose about nothing",
            ),
        ]
    else:
        entries += [
            (
                "compute, s",
                "measured seconds of a question: its trajectories' shares of decoding and feature passes, and its "
                "prefill; for controllers also the question's embedding and the controller's calls",
            ),
            ("latency, s", _latency(result)),
        ]
    if clock is not None:
        entries.append(
            (
                "time, calibrated s",
                f"tokens and the prompt times seconds per token, measured once ({clock['seconds_per_token']:.3g} s per "
                f"generated and {clock['prefill_seconds_per_token']:.3g} s per prompt token, the clock of "
                f"{clock['store']} for all policies): does not depend on what else the machine was doing",
            )
        )
    return entries


def _latency(result: Mapping[str, Any]) -> str:
    alone = {store["questions_at_a_time"] for store in result["provenance"]["stores"]} == {1}
    where = "of one question alone, with all its wanted trajectories side by side" if alone else "in a run of many"
    return f"wall-clock seconds from admission to answer, {where}; of a fixed k, until the last trajectory ended"
