"""Made-up records for tests: cheap questions and trajectories with every field set and a known structure."""

from collections import Counter

import numpy as np

from feature_store.records import Decision, Manifest, Question, StepTrace, Trajectory, no_steps


def make_steps(rng, *, num_tokens=20, block_size=8, num_mh_steps=5):
    """The trace of a chain that grew to `num_tokens`: its stages' horizons are multiples of the block size.

    Log p rises within a stage as an autoregression does, by steps that were accepted.
    """
    horizons = np.arange(block_size, num_tokens + block_size, block_size)
    lengths = np.minimum(horizons, num_tokens)
    count = num_mh_steps * len(horizons)
    length = np.repeat(lengths, num_mh_steps)
    cut = rng.integers(0, length)
    accepted = rng.random(count) < 0.2 + 0.6 * cut / length
    logprob = np.zeros(count)
    for stage, tokens in enumerate(lengths):
        now = -0.3 * tokens + rng.normal()
        for step in range(num_mh_steps * stage, num_mh_steps * (stage + 1)):
            if accepted[step]:
                now = -0.25 * tokens + 0.5 * (now + 0.25 * tokens) + rng.normal()
            logprob[step] = now
    return StepTrace(
        np.repeat(horizons, num_mh_steps).astype(np.int32),
        length.astype(np.int32),
        cut.astype(np.int32),
        accepted,
        logprob,
    )


def make_trajectory(
    index=0,
    *,
    rng=None,
    correct=True,
    answer="7",
    answer_class=0,
    hidden_size=8,
    num_tokens=20,
    block_size=8,
    signal=0.0,
    steps=None,
):
    """One trajectory whose hidden state's first component and entropy carry `signal`.

    Its steps are counted but not recorded, unless `steps` gives their number per stage.
    """
    rng = rng or np.random.default_rng(index)
    # A stream of its own, so that the rest is the same with a trace and without.
    trace = (
        no_steps()
        if steps is None
        else make_steps(rng.spawn(1)[0], num_tokens=num_tokens, block_size=block_size, num_mh_steps=steps)
    )
    blocks = np.diff([*range(0, num_tokens, block_size), num_tokens]).astype(np.int32)
    per_token = rng.gamma(1.0, 0.2, size=len(blocks)) + 0.3 * (1 - signal)
    hidden = rng.normal(size=(len(blocks), hidden_size)).astype(np.float32)
    if hidden_size:
        hidden[:, 0] += 3 * signal
    return Trajectory(
        index=index,
        tokens=rng.integers(0, 50, num_tokens).astype(np.int32),
        text=f"response {index}",
        answer=answer,
        answer_class=answer_class,
        correct=correct,
        base_logprob=float(-(per_token * blocks).sum()),
        proposal_logprob=float(-(0.2 * per_token * blocks).sum()),
        num_generated_tokens=4 * num_tokens,
        mh_proposed=10 if steps is None else len(trace.accepted),
        mh_accepted=int(rng.integers(2, 9)) if steps is None else int(trace.accepted.sum()),
        compute_s=0.02,
        started_s=0.0,
        finished_s=0.5 + 0.1 * index,
        block_num_tokens=blocks,
        block_logprob=-(per_token * blocks),
        block_entropy=1.5 * per_token * blocks,
        block_top1=0.8 * blocks.astype(np.float64),
        hidden=hidden,
        steps=trace,
        ending=("eos", "stop", "length", "early")[index % 4],
        strict_answer=answer if index % 3 else None,
        strict_correct=correct if index % 3 else None,
        token_logprob=np.repeat(-per_token, blocks).astype(np.float32),
        token_entropy=np.repeat(1.5 * per_token, blocks).astype(np.float32),
        token_top1=np.full(num_tokens, 0.8, np.float32),
    )


def make_question(
    number=0,
    *,
    k=8,
    hidden_size=8,
    embedding_size=5,
    rng=None,
    p_correct=None,
    decisions=(),
    steps=None,
):
    """One question; easy ones (p_correct near 1) are right in most trajectories, and their features say so."""
    rng = rng or np.random.default_rng([7, number])
    p_correct = float(rng.beta(1.2, 0.8)) if p_correct is None else p_correct
    trajectories = []
    for index in range(k):
        correct = bool(rng.random() < p_correct)
        answer_class = 0 if correct else int(rng.integers(1, 6))
        trajectories.append(
            make_trajectory(
                index,
                rng=rng,
                correct=correct,
                answer="7" if correct else str(10 + answer_class),
                answer_class=answer_class,
                hidden_size=hidden_size,
                signal=float(correct),
                num_tokens=int(rng.integers(9, 30)),
                steps=steps,
            )
        )
    votes = Counter(t.answer_class for t in trajectories)
    winner = max(trajectories, key=lambda t: (votes[t.answer_class], t.base_logprob)) if trajectories else None
    return Question(
        question_id=f"q{number:05d}",
        question=f"What is {number}?",
        prompt=f"Q: What is {number}? A:",
        gold="7",
        metadata={"level": number % 5, "kind": "made-up"},
        num_prompt_tokens=int(rng.integers(5, 15)),
        embedding=rng.normal(size=embedding_size).astype(np.float32),
        prefill_s=0.001,
        embedding_s=0.002,
        controller_s=0.0,
        latency_s=1.5,
        answer=winner.answer if winner else None,
        correct=winner.correct if winner else None,
        decisions=tuple(decisions),
        trajectories=tuple(trajectories),
    )


def make_manifest(*, sampler=None, **changes):
    """A manifest that fits the questions above; `sampler` is the settings of its one arm."""
    if sampler is not None:
        changes["arms"] = {"power": sampler}
    values = dict(
        kind="harvest",
        policy={"name": "power", "family": "fixed", "ladder": ["power 2", "power 2", "power 2", "power 2"]},
        aggregator="majority",
        seed=0,
        model={"name": "made-up", "fingerprint": "0" * 16, "num_layers": 12, "hidden_size": 8, "feature_layer": 11},
        benchmark={"name": "made-up", "source": "tests/factories.py", "split": "train"},
        arms={"power": {"alpha": 4.0, "block_size": 8, "num_mh_steps": 5, "max_new_tokens": 32}},
        calibration={"seconds_per_token": 0.001, "prefill_seconds_per_token": 0.0001, "rows": 64},
        config={},
        fingerprint="made-up",
        software={},
    )
    return Manifest(**{**values, **changes})


def make_dynamic_question(number=0, ks=(2, 4), **kwargs):
    """A question as a controller's live run leaves it: it asked at each of `ks` and stopped at the last."""
    return make_question(
        number, k=ks[-1], decisions=[Decision(k, 0.3 + 0.1 * i) for i, k in enumerate(ks) if k < 8], **kwargs
    )
