"""A policy with controllers inside the run, replayed over a stored question: what a live run decides, without sampling.

Needs a harvest with snapshots of the blocks after which somebody is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

from dps.decide import Controller, InRun, Policy
from dps.decide.aggregate import answer_of
from dps.decide.seen import question_key, seen_of
from dps.run.scheduler import features_for
from feature_store.records import Decision, Question


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a policy does with a question."""

    k: int
    """Trajectories."""
    decisions: tuple[Decision, ...]
    """What was said, in order."""
    gave_up: bool
    """Whether the question was given up."""
    answer: str | None
    """The answer."""
    correct: bool | None
    """Whether it is right."""
    num_tokens: int
    """Tokens sampled, rejected ones included. Where the question is given up: until the block that the decision looked
    at. A live run samples some more before the decision falls."""
    num_steps: int
    """Decoding steps from admission to answer where every trajectory has a row as soon as it is asked for: each step
    samples one token of each trajectory that runs. A recorded GPU adds what it takes until its next look."""


def replay_question(
    question: Question, policy: Policy, in_run: InRun | None, *, aggregator: str = "majority", seed: int = 0
) -> Replayed:
    """Decide about a question as :func:`dps.run.scheduler.run_policy` does.

    Args:
        question: With as many trajectories as the policy can ask for, and their snapshots.
        policy: Asked at the end of k trajectories.
        in_run: Asked before.
        aggregator: How k answers become one.
        seed: Of the run, for the rule that escalates by chance.
    """
    decisions: list[Decision] = []

    def ask(controller: Controller, k: int, block: int | None = None, about: str = "enough") -> float:
        seen = [t.at(block) for t in question.trajectories[:k]]
        features = features_for(controller, seen, question.num_prompt_tokens, question.embedding)
        said = float(controller.predict_enough([features])[0])
        decisions.append(Decision(k, said, block, about))
        return said

    k, gave_up_at, now = policy.start, None, 0
    started = [now] * k

    def reached(block: int | None) -> int:
        """Return the step at which all have come to the end of a block, or to their own."""
        return max(
            start + t.at(block).num_generated_tokens for start, t in zip(started, question.trajectories, strict=False)
        )

    while True:
        more = 0
        for block in in_run.blocks if in_run is not None and in_run.asks(k) else ():
            if all(t.at(block) is t for t in question.trajectories[:k]):
                break  # all have ended
            now = reached(block)
            if block in in_run.give_up and in_run.gives_up(block, ask(in_run.give_up[block], k, block, "solvable")):
                gave_up_at = block
                break
            if block in in_run.escalation and in_run.escalates(block, ask(in_run.escalation[block], k, block)):
                more = in_run.range.step
                break
        if not more and gave_up_at is None:
            now = reached(None)
            p_enough = None
            if policy.asks(k) and policy.controller is not None:
                p_enough = ask(policy.controller, k)
            elif policy.asks(k) and policy.rule is not None:
                seen = seen_of([question.trajectories[:k]], [question_key(seed, question.question_id)])
                p_enough = float(policy.rule.enough(seen)[0])
                decisions.append(Decision(k, p_enough))
            more = policy.more(k, p_enough)
        if not more:
            break
        k += more
        started += [now] * more
    then = [t.at(gave_up_at) for t in question.trajectories[:k]]
    ended = [t for t, now in zip(question.trajectories, then, strict=False) if now is t]
    # What was given up has no answer, and is as right as no answer is.
    answer, correct = answer_of(ended, aggregator) if ended else (None, False if question.gold is not None else None)
    num_tokens = sum(t.num_generated_tokens for t in then)
    return Replayed(k, tuple(decisions), gave_up_at is not None, answer, correct, num_tokens, now)
