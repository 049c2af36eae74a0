"""``dps sample``: one question, its responses rung by rung, and why the policy stopped and which response is shown."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dps.commands.options import given_groups, parse, parser_of
from dps.start import IMPORTS, SAMPLING, stage, starting

if TYPE_CHECKING:
    from dps.decide.ladder import Ladder
    from dps.run.live import Checkpoint
    from feature_store import Question, Trajectory


@starting("sample")
def run_sample(arguments: list[str]) -> None:
    """``dps sample``: ask one question."""
    from dps.arguments import check_policy_alone, check_seed
    from dps.config import KRange, SampleConfig
    from dps.decide import RULES
    from dps.decide.ladder import ladder_of
    from dps.decide.policy_file import checkpoint_path, read_policy
    from dps.model_config import EMBEDDED, ModelConfig, check_there
    from dps.sampler.arms import arms_of
    from dps.sampler.settings import SamplerConfig

    parser = parser_of("sample", SampleConfig, "Ask one question, and watch the number of its responses grow.")
    parser.add_argument("question", help="the question, in quotes; - reads it from the standard input")
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_class_arguments(SamplerConfig, "sampler")
    parser.add_class_arguments(KRange, "k")
    config, parsed = parse(parser, SampleConfig, arguments, fits="sample")
    config.check()
    built = parser.instantiate_classes(parsed)
    model_config, sampler, k = built["model"], built["sampler"].check(), built["k"].check()
    check_seed(config.seed)
    asker: dict[str, Any] = {"sampler": sampler, "arms": config.arms}
    given = given_groups(parser, arguments, "k", "sampler")
    check_policy_alone(config.policy, given)
    file = None if config.policy is None else read_policy(config.policy)
    if file is not None:
        ladder, asker = file.ladder, {"policy": config.policy}
    else:
        ladder = ladder_of(k, config.ladder)
        arms_of(config.arms, [ladder], sampler)
        asker |= {"ladder": ladder}
    if config.controller is not None:
        checkpoint_path(config.controller)
    elif file is None:
        asker["rule"] = replace(RULES["lead"], threshold=-1.0)  # never enough, so that each rung is seen as it comes
    style = config.style or ("arithmetic" if model_config.name == EMBEDDED else "number")
    from dps.benchmarks.given import check_questions, check_style

    question = sys.stdin.read().strip() if parsed["question"] == "-" else parsed["question"]
    check_style(style)
    check_questions([question])
    check_there(model_config)
    with stage(IMPORTS):
        from dps.api import answer
        from dps.model import load_model
        from lightning_modules.load import load_controller
    if config.controller is not None:
        controller = asker["controller"] = load_controller(config.controller)
        asker["sampler"] = sampler if "sampler" in given else None  # that of its harvest
        if not config.ladder and "k" not in given:
            ladder = asker["ladder"] = controller.ladder
    threshold = getattr(asker.get("controller"), "threshold", None)
    if file is not None:
        threshold = file.rule.threshold if file.rule is not None else file.threshold
    model = load_model(model_config)
    with stage(SAMPLING):
        [record] = answer(
            question,
            model,
            **asker,
            style=style,
            embedder=config.embedder,
            feature_layer=config.feature_layer,
            seed=config.seed,
            rows=config.rows,
            eager=config.eager,
            on_checkpoint=None if config.json else _Show(ladder, threshold),
        )
    told = _told(record, threshold, "majority" if file is None else file.aggregator)
    if config.json:
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    _say(record, told)


def _say(record: Question, told: dict[str, Any]) -> None:
    """Print the response that is shown, the answer, what it took, and why that response."""
    cancelled = record.num_cancelled_tokens
    early = f", {cancelled:,} of them begun early and not needed" if cancelled else ""
    text = told["responses"][told["shown"]]["text"].strip()
    took = f"k = {record.k}, {told['num_tokens']:,} tokens{early}, {record.latency_s:.1f} s"
    given = _plain(record.answer or "none")
    _print(f"\n{_plain(text)}\n\n[bold]answer: {given}[/]   ({took})\nwhy: {_plain(told['why'])}")
    if cut := _cut(record.trajectories, told["shown"]):
        _print(f"[yellow]{_plain(cut)}[/]")


class _Show:
    """Says what each rung brought as soon as it is there: answers, votes so far, what the policy says, and the cost."""

    def __init__(self, ladder: Ladder, threshold: float | None) -> None:
        self._rungs = [*zip(map(str, ladder.rungs), (0, *ladder.ks), ladder.ks, strict=False)]
        self._width = max(len(rung) for rung, _, _ in self._rungs)
        self._threshold = threshold

    def __call__(self, checkpoint: Checkpoint) -> None:
        """Say what is new."""
        given = [_answer(t) for t in checkpoint.trajectories]
        while self._rungs and self._rungs[0][2] <= len(given):
            rung, first, last = self._rungs.pop(0)
            words = [f"[bold]{rung:<{self._width}}[/]", _plain("  ".join(given[first:last]))]
            if last == len(given):  # nothing was decided after the rungs before
                words += [_plain(_votes(checkpoint.trajectories)), *self._decision(checkpoint)]
                took = max(t.finished_s for t in checkpoint.trajectories)
                words.append(f"[dim]{_tokens(checkpoint.trajectories):,} tokens, {took:.1f} s[/]")
            _print("   ".join(words))

    def _decision(self, checkpoint: Checkpoint) -> list[str]:
        if checkpoint.p_enough is None or self._threshold is None:
            return []
        colour = "yellow" if checkpoint.more else "green"
        more = f" → {checkpoint.more} more" if checkpoint.more else ""
        return [f"[{colour}]{confidence(checkpoint.p_enough, self._threshold)}{more}[/]"]


def _answer(trajectory: Trajectory) -> str:
    return "–" if trajectory.answer is None else trajectory.answer


def _votes(trajectories: Sequence[Trajectory]) -> str:
    """Return the two answers with the most votes: ``111: 3 of 4, 96: 1``."""
    from dps.decide.aggregate import representative

    classes = [t.answer_class for t in trajectories]
    leader = representative(classes, [t.base_logprob for t in trajectories])
    counts = Counter(classes if leader is None else [classes[leader], *classes])
    counts[-1] = 0
    counts = [(number, count - (place == 0)) for place, (number, count) in enumerate(counts.most_common(2)) if count]
    names = {t.answer_class: _answer(t) for t in reversed(trajectories)}
    said = [f"{names[number]}: {count}" for number, count in counts] or ["no answer: 0"]
    return ", ".join([f"{said[0]} of {len(trajectories)}", *said[1:]])


def _tokens(trajectories: Sequence[Trajectory]) -> int:
    return sum(t.num_generated_tokens for t in trajectories)


def _told(record: Question, threshold: float | None, aggregator: str) -> dict[str, Any]:
    """Return a record as JSON values, with the response that is shown, and why that one."""
    from dps.decide.aggregate import winner_of

    of, shown = record.trajectories, winner_of(record.trajectories, aggregator)
    shown = max(range(len(of)), key=lambda index: of[index].base_logprob) if shown is None else shown
    asked = record.decisions if threshold is not None else ()
    settled = ("arm", "index", "answer", "text", "num_generated_tokens", "base_logprob", "ending")
    return {
        "question": record.question,
        "prompt": record.prompt,
        "answer": record.answer,
        "k": record.k,
        "num_tokens": record.num_sampled_tokens,
        "num_cancelled_tokens": record.num_cancelled_tokens,
        "latency_s": round(record.latency_s, 3),
        "shown": shown,
        "why": _why(of, shown, aggregator),
        "threshold": threshold,
        "decisions": [{"k": each.k, "p_enough": each.p_enough} for each in asked],
        "responses": [{name: getattr(t, name) for name in settled} for t in of],
    }


def _why(trajectories: Sequence[Trajectory], shown: int, aggregator: str) -> str:
    """Return why a response stands for all: its votes, and its log-probability among those with the same answer."""
    if trajectories[shown].answer is None:
        logprob = trajectories[shown].base_logprob
        return f"no response has an answer; response {shown + 1} is the most probable one (log p = {logprob:.1f})"
    mine, counts = trajectories[shown], Counter(t.answer_class for t in trajectories if t.answer_class >= 0)
    votes = counts[mine.answer_class]
    reason = f"{votes} of {len(trajectories)} votes"
    if aggregator != "majority":
        reason += f", chosen by {aggregator}"
    elif [*counts.values()].count(votes) > 1:
        reason += ", as many as another answer, whose responses are less probable"
    most = "the most probable one with this answer" if votes > 1 else "the only one with this answer"
    return f"{reason}; response {shown + 1} ({mine.arm}) is {most} (log p = {mine.base_logprob:.1f})"


def _cut(trajectories: Sequence[Trajectory], shown: int) -> str | None:
    """Return which responses ended at T_max, whose text and answer may so be incomplete; None if none did."""
    cut = [number for number, each in enumerate(trajectories) if each.ending == "length"]
    if not cut:
        return None
    which = f"{'all' if len(cut) == len(trajectories) else len(cut)} of {len(trajectories)} responses"
    which = "the response" if len(trajectories) == 1 else f"{which}, the one above too" if shown in cut else which
    return f"cut off: {which}, at T_max = {len(trajectories[cut[0]].tokens):,} tokens (sampler.max_new_tokens)"


def _print(text: str) -> None:
    """Print a line of rich's markup: with colours on a terminal, as plain text elsewhere."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text)


def _plain(text: object) -> str:
    from rich.markup import escape

    return escape(str(text))


def confidence(p_enough: float, threshold: float) -> str:
    """Return what a controller said beside what it stops at: ``enough: 99.1 % (stops from 96.0 %)``.

    There are as many digits, one at least, as show on which side of the bound the probability lies. More trajectories
    are added while ``1 - p_enough`` is above the threshold.
    """
    if threshold < 0:
        return f"enough: {100 * p_enough:.1f} % (never stops before the most)"
    stops, bound, digits = 1.0 - p_enough <= threshold, max(0.0, 1.0 - threshold), 1
    while not stops and digits < 15 and f"{100 * p_enough:.{digits}f}" == f"{100 * bound:.{digits}f}":
        digits += 1
    return f"enough: {100 * p_enough:.{digits}f} % (stops from {100 * bound:.{digits}f} %)"
