"""Made-up evaluations with known results: records written question by question from rows of right and wrong."""

from dataclasses import replace

from dps.decide import RULES
from dps.decide.ladder import from_ks
from feature_store import StoreWriter
from tests.factories import make_manifest, make_question, make_trajectory

RIGHT, WRONG = "right", "wrong"


def question(number, row, *, tokens=100, decisions=(), latency_s=9.0, arm="power", **changes):
    """A question whose trajectories, of one arm, are right where `row` has a 1; trajectory i took (i + 1) * 0.1 s.

    Right trajectories have the higher log p, so that one right of two wins the tie.
    """
    trajectories = []
    for index, right in enumerate(row):
        trajectory = make_trajectory(
            index, correct=bool(right), answer=RIGHT if right else WRONG, answer_class=0 if right else 1, hidden_size=0
        )
        trajectories.append(
            replace(
                trajectory,
                arm=arm,
                base_logprob=-1.0 if right else -2.0,
                num_generated_tokens=tokens,
                compute_s=0.02,
                finished_s=0.1 * (index + 1),
            )
        )
    votes = sum(row) * 2 >= len(row)
    base = make_question(number, k=1, hidden_size=0)
    values = dict(
        trajectories=tuple(trajectories),
        answer=RIGHT if votes else WRONG,
        correct=bool(votes),
        decisions=tuple(decisions),
        num_prompt_tokens=10,
        prefill_s=0.003,
        embedding_s=0.002,
        controller_s=0.001,
        latency_s=latency_s,
    )
    return replace(base, **{**values, **changes})


def power_manifest(**changes):
    return make_manifest(kind="evaluation", **changes)


def plain_manifest(name="plain", ks=(1, 2, 4), **changes):
    return make_manifest(
        kind="evaluation",
        policy={"name": name, "family": "fixed", "ladder": from_ks(name, ks).texts()},
        arms={name: {**make_manifest().arms["power"], "num_mh_steps": 0}},
        calibration={"seconds_per_token": 5.0, "prefill_seconds_per_token": 5.0, "rows": 64},
        **changes,
    )


def dynamic_manifest(name="gbdt", **changes):
    return make_manifest(
        kind="evaluation",
        policy={
            "name": name,
            "family": "dynamic",
            "ladder": ["power 2", "power 2", "power 2", "power 2"],
            "threshold": 0.5,
            **({"rule": {"name": name}} if name in RULES else {}),
        },
        **changes,
    )


def power_rows(num_questions, hard=0.4, hopeless=0.05):
    """Rows of 8: hard questions are wrong at k = 2 and right at k = 8, a few are never right, the rest always."""
    num_hard, num_hopeless = int(hard * num_questions), int(hopeless * num_questions)
    rows = [[0, 0, 1, 1, 1, 1, 1, 1]] * num_hard + [[0] * 8] * num_hopeless
    return rows + [[1] * 8] * (num_questions - len(rows))


def write_store(folder, manifest, questions):
    StoreWriter.open(folder, replace(manifest, fingerprint=str(manifest.policy["name"]))).commit(questions)
    return folder


def write_evaluation(folder, num_questions=40, plain_right=0.5):
    """A whole small evaluation: power, two controllers, plain right on that share of the questions, lowtemp."""
    rows = power_rows(num_questions)
    write_store(folder / "power", power_manifest(), [question(i, row) for i, row in enumerate(rows)])
    for name, hard_k in (("gbdt", 6), ("mlp-h", 4)):
        ks = [2 if row[0] else hard_k for row in rows]
        live = [question(i, row[:k]) for i, (row, k) in enumerate(zip(rows, ks, strict=True))]
        write_store(folder / name, dynamic_manifest(name), live)
    for name, right in (("plain", plain_right), ("lowtemp", 0.2)):
        questions = [
            question(i, [int(i < right * num_questions)] * 4, tokens=60, arm=name) for i in range(num_questions)
        ]
        write_store(folder / name, plain_manifest(name), questions)
    return folder
