"""Check that a replay over a stored harvest says what the live runs of the same policies did, question by question.

    python scripts/check_replay_live.py --output docs/results/replay-live

Harvests 400 training questions of the embedded model (8 power, 16 plain and 2 low-temperature responses) and trains
controllers on them, on three ladders, two of them of other arms than power; then harvests 200 other questions alike and
runs these controllers and three rules on each ladder live, under the same seed. The replay decides over
the stored trajectories in their natural order, through the functions of ``dps replay``, at the thresholds of the live
runs. Every k, answer, grade and token count (what was cancelled left out) must be the same, and every ``p_enough``
within 1e-6; otherwise it says where not and ends with code 1. The live runs are repeated, because their measured times
depend on what else the machine was doing. Writes ``replay_live.json``; what stands in ``--runs`` is not sampled again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dps.decide import RULES
from dps.decide.aggregate import answer_of
from dps.decide.features import calibrated_seconds
from dps.decide.labels import continue_score
from dps.decide.ladder import Key, Ladder
from dps.decide.orders import ladder_orders, walk
from dps.decide.samples import held_of, samples_of, trajectories_of
from dps.decide.thresholds import stops
from feature_store import Question, Store
from lightning_modules.predict import predict_orders

ROOT = Path(__file__).resolve().parents[1]
RULE_NAMES = ("adaptive-consistency", "esc", "entropy")
LADDERS = {
    "power": "[power 2, power 2, power 2, power 2]",
    "plain": "[plain 2, plain 2, plain 4, plain 8]",
    "mixed": "[plain 2, lowtemp 2, plain 4, power 2, power 2]",
}
"""What rules and controllers climb."""
LADDER_FEATURES = "--data.init_args.feature_set=ladder"
CONTROLLERS: dict[str, dict[str, tuple[str, ...]]] = {
    "power": {"gbdt": ("gbdt",), "mlp-hq": ("mlp_hq",)},
    "plain": {"value-plain": ("value", LADDER_FEATURES)},
    "mixed": {"gbdt-mixed": ("gbdt", LADDER_FEATURES)},
}
"""The controllers of each ladder: their configurations, and what is set besides."""
TOTALS = "[power 8, plain 16, lowtemp 2]"
"""What both harvests take: the arms stand in another order than on the ladders."""
TOLERANCE = 1e-6
"""Of ``p_enough``. Hidden states are float32 and of another batch live than in the harvest, so last bits differ."""
AGREE = ("same_k", "same_answer", "same_grade", "same_tokens", "same_calibrated_time")
"""What must be the same of every question."""


def dps(*arguments: str) -> None:
    """Run a command of the toolkit in the repository's root."""
    subprocess.run([sys.executable, "-m", "dps", *arguments], cwd=ROOT, check=True)


def sample_all(runs: Path, train: int, questions: int, repeats: int, compute: Sequence[str], *, eager: bool) -> None:
    """Harvest, train and evaluate; what is done already is not done again."""
    harvest = ["harvest", "--config=configs/harvest/arithmetic.yaml", *compute]
    dps(*harvest, f"--benchmark.limit={train}", f"--ladder={TOTALS}", f"--output={runs / 'train'}")
    for ladder, controllers in CONTROLLERS.items():
        for name, (config, *settings) in controllers.items():
            if not (ROOT / runs / name / "checkpoints" / "best.ckpt").is_file():
                options = [f"--data.init_args.store={runs / 'train'}", f"--trainer.default_root_dir={runs / name}"]
                options += [f"--data.init_args.ladder={LADDERS[ladder]}", *settings]
                dps("fit", f"--config=configs/{config}.yaml", *options)
    same = ["--benchmark.split=test", f"--benchmark.limit={questions}"]
    dps(*harvest, *same, f"--ladder={TOTALS}", f"--output={runs / 'harvest'}")
    evaluate = ["evaluate", "--config=configs/evaluate/arithmetic.yaml", *compute, *same]
    evaluate += [f"--compute.eager={str(eager).lower()}"]
    for repeat, (name, ladder) in itertools.product(range(repeats), LADDERS.items()):
        controllers = CONTROLLERS[name]
        policies = ",".join([*controllers, *RULE_NAMES])
        paths = [f"--controllers.{controller}={runs / controller}" for controller in controllers]
        output = f"--output={runs / f'evaluation-{repeat}' / name}"
        dps(*evaluate, *paths, f"--policies=[{policies}]", f"--ladder={ladder}", output)


def compare(harvest: Path, evaluation: Path, controllers: Mapping[str, Path], rules: Sequence[str]) -> dict[str, Any]:
    """Replay policies over a harvest and compare every decision with the stores of their live runs.

    Args:
        harvest: Store with features of all graded questions of the evaluation.
        evaluation: Folder with the store of each policy.
        controllers: Name of each controller's store, and where it is.
        rules: Names of rules that ran with a store of their own.

    Returns:
        Of each policy how many questions agree in what, the largest difference of ``p_enough``, and the times.
    """
    store = Store.open(harvest)
    aggregator, found = store.manifest.aggregator, {}
    for name in (*controllers, *rules):
        live = Store.open(evaluation / name)
        policy = live.manifest.policy
        ladder = Ladder.parse(policy["ladder"])
        ks, keys = ladder.ks, ladder.sequence()
        totals = held_of(store.manifest, str(harvest), ladder)
        samples = samples_of(store.scan(hidden=False), totals, str(harvest))
        samples = samples.select(samples.has_grade)
        natural = ladder_orders(samples.question_ids, samples.arms, ladder, 1, 0)
        walked = walk(samples, natural, ks, aggregator, rule_seed=live.manifest.seed)
        if name in controllers:
            known, p_enough, threshold, _ = predict_orders(
                str(controllers[name]), harvest, samples.question_ids, lambda _, columns=natural: columns
            )
            assert known == ladder, f"{name} was trained on {known}"
        else:
            rule = replace(RULES[name], **{k: v for k, v in policy["rule"].items() if k != "name"})
            p_enough, threshold = walked.p_enough(rule), rule.threshold
        p_inc = continue_score(p_enough)
        stored = {q.question_id: q for q in store.scan(hidden=False)}
        lived = {q.question_id: q for q in live.scan(hidden=False)}
        stop = stops(p_inc, threshold)[:, 0]
        rows = [
            _row(
                stored[question_id],
                lived[question_id],
                keys=keys[: ks[at]],
                correct=bool(walked.correct[row, 0, at]),
                tokens=int(walked.tokens[row, 0, at]),
                p_enough=1.0 - p_inc[row, 0],
                aggregator=aggregator,
                clock=store.manifest.calibration,
                live_clock=live.manifest.calibration,
            )
            for row, (question_id, at) in enumerate(zip(samples.question_ids, stop, strict=True))
        ]
        found[name] = _summary(rows, threshold, p_inc[:, 0])
    return found


def _row(
    stored: Question,
    live: Question,
    *,
    keys: Sequence[Key],
    correct: bool,
    tokens: int,
    p_enough: np.ndarray,
    aggregator: str,
    clock: Mapping[str, float],
    live_clock: Mapping[str, float],
) -> dict[str, Any]:
    """Return what the replay says of a question (keys to p_enough), beside what the live run did."""
    asked = np.array([decision.p_enough for decision in live.decisions])
    lived_tokens = sum(t.num_generated_tokens for t in live.trajectories)
    prefix = trajectories_of(stored, keys)
    return {
        "question_id": live.question_id,
        "same_k": list(keys) == [(t.arm, t.index) for t in live.trajectories],
        "same_answer": answer_of(prefix, aggregator)[0] == live.answer,
        "same_grade": correct == bool(live.correct),
        "same_tokens": tokens == lived_tokens,
        "p_enough_difference": float(np.abs(p_enough[: len(asked)] - asked).max(initial=0.0)),
        "k": live.k,
        "tokens": lived_tokens,
        "same_calibrated_time": calibrated_seconds(tokens, stored.num_prompt_tokens, clock)
        == calibrated_seconds(lived_tokens, live.num_prompt_tokens, clock),
        "calibrated_s": calibrated_seconds(tokens, stored.num_prompt_tokens, clock),
        "calibrated_by_live_clock_s": calibrated_seconds(tokens, stored.num_prompt_tokens, live_clock),
        "stored_compute_s": stored.prefill_s + stored.embedding_s + sum(t.compute_s for t in prefix),
        "cancelled_tokens": live.num_cancelled_tokens,
        "live_compute_s": live.cancelled_s
        + live.prefill_s
        + live.embedding_s
        + live.controller_s
        + sum(t.compute_s for t in live.trajectories),
        "live_controller_s": live.controller_s,
    }


def _summary(rows: Sequence[Mapping[str, Any]], threshold: float, p_inc: np.ndarray) -> dict[str, Any]:
    """Return the counts of what agrees, and mean times a question."""

    def mean(name: str) -> float:
        return float(np.mean([row[name] for row in rows]))

    seconds = ("calibrated_s", "calibrated_by_live_clock_s", "stored_compute_s", "live_compute_s", "live_controller_s")
    return {
        "num_questions": len(rows),
        **{name: sum(row[name] for row in rows) for name in AGREE},
        "largest_p_enough_difference": max(row["p_enough_difference"] for row in rows),
        "threshold": threshold,
        "nearest_p_inc_to_threshold": float(np.abs(p_inc - threshold).min()),
        "differ": [
            row["question_id"]
            for row in rows
            if not all(row[name] for name in AGREE) or row["p_enough_difference"] > TOLERANCE
        ],
        **{name: mean(name) for name in ("k", "tokens", "cancelled_tokens", *seconds)},
    }


def main() -> int:
    """Run everything, write the table, and return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=400, help="questions to train controllers on")
    parser.add_argument("--questions", type=int, default=200, help="other questions to compare on")
    # Few enough to stay full until near the end: the calibrated clock is that of full rows.
    parser.add_argument("--rows", type=int, default=32, help="chains that run at a time in a worker")
    parser.add_argument("--repeats", type=int, default=3, help="live runs")
    parser.add_argument("--workers", type=int, default=1, help="worker processes for sampling")
    parser.add_argument("--eager", action="store_true", help="begin rungs early in the live runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/replay-live"))
    parser.add_argument("--output", type=Path, default=Path("docs/results/replay-live"))
    options = parser.parse_args()
    compute = [f"--compute.rows={options.rows}", f"--compute.workers={options.workers}"]
    sample_all(options.runs, options.train, options.questions, options.repeats, compute, eager=options.eager)
    runs = ROOT / options.runs
    repeats = []
    for repeat in range(options.repeats):
        found = {}
        for name in LADDERS:
            of = {controller: runs / controller for controller in CONTROLLERS[name]}
            one = compare(runs / "harvest", runs / f"evaluation-{repeat}" / name, of, RULE_NAMES)
            found |= {f"{policy} ({name})": row for policy, row in one.items()}
        repeats.append(found)
    report = {
        "train_questions": options.train,
        "rows": options.rows,
        "ladders": LADDERS,
        "tolerance": TOLERANCE,
        "controllers": CONTROLLERS,
        "repeats": repeats,
    }
    folder = ROOT / options.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "replay_live.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name in repeats[0]:
        found = [repeat[name] for repeat in repeats]
        print(
            f"{name}: the same k on {[one['same_k'] for one in found]} of {options.questions} questions, the same "
            f"answer on {[one['same_answer'] for one in found]}, p_enough within "
            f"{max(one['largest_p_enough_difference'] for one in found):.1e}"
        )
    different = sorted({question for repeat in repeats for found in repeat.values() for question in found["differ"]})
    if different:
        print(f"Replay and live differ on {', '.join(different[:10])}.", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
