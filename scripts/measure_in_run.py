"""Measure what it is worth to ask controllers while trajectories run: to escalate early, and to give up, each alone.

    python scripts/measure_in_run.py --runs runs/in-run --output docs/results/in-run/block-24.json

``--runs`` holds ``test``, a harvest with snapshots of questions that trained nobody, and ``controllers`` with ``end``,
``escalate`` and ``give-up``, trained for the block ``--block`` (the commands are in docs/results/in-run/README.md).
Every policy is replayed over the harvest in several orders of the trajectories: accuracy, tokens, and latency as
decoding steps from admission to answer where every trajectory has a row. Some policies also run live, many questions in
one batch: do they decide as the replay says, and what do questions that are given up cost beyond that?
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dps.analysis.replay.in_run import replay_question
from dps.analysis.replay.samples import orders_of
from dps.benchmarks import BenchmarkConfig, load_benchmark
from dps.decide import DynamicK, FixedK, InRun, KRange, Policy
from dps.decide.features import CheckpointFeatures
from dps.decide.table import make_table
from dps.model import load_model
from dps.run.scheduler import features_for, run_policy
from dps.run.worker import open_embedder, prepare, prompts_of
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from feature_store import Question, Store
from lightning_modules.load import Controller, load_controller
from lightning_modules.metrics import auroc, auroc_stderr

RANGE = KRange(2, 2, 8)
ESCALATE = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Thresholds of 1 - p_enough, besides the controller's own."""
GIVE_UP = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Thresholds of the probability that the question is solvable, besides the controller's own."""
DRAWS = 2000
NAMES = ("correct", "tokens", "steps", "k", "asked_inside", "gave_up")


class Remembering:
    """A controller that is asked about equal features once."""

    def __init__(self, controller: Controller) -> None:
        """Wrap."""
        self._controller = controller
        self._said: dict[bytes, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)

    def predict_enough(self, features: Sequence[CheckpointFeatures]) -> np.ndarray:
        """Return the probabilities, shape (N,)."""
        keys = [f.scalars.tobytes() + f.extended.tobytes() + f.hidden.tobytes() for f in features]
        new = {key: f for key, f in zip(keys, features, strict=True) if key not in self._said}
        if new:
            said = self._controller.predict_enough(list(new.values())).tolist()
            self._said |= dict(zip(new, said, strict=True))
        return np.array([self._said[key] for key in keys])


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a policy gave on each of Q questions; every array has shape (Q,)."""

    correct: np.ndarray
    tokens: np.ndarray
    steps: np.ndarray
    k: np.ndarray
    asked_inside: np.ndarray
    gave_up: np.ndarray

    def row(self, base: Outcome, draws: np.ndarray) -> dict[str, Any]:
        """Return its means, and its differences from another policy with paired 95 % intervals."""
        difference = draws @ (self.correct - base.correct)
        means = {n: float(getattr(self, n).mean()) for n in NAMES}
        means["accuracy_difference"] = _interval(float((self.correct - base.correct).mean()), difference)
        for name in ("tokens", "steps"):
            mine, theirs = getattr(self, name), getattr(base, name)
            means[f"{name}_ratio"] = _interval(float(mine.sum() / theirs.sum()), (draws @ mine) / (draws @ theirs))
        return means


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def replayed(questions: Sequence[Question], orders: np.ndarray, policy: Policy, inside: InRun | None) -> Outcome:
    """Replay a policy over every order of every question; returns means over the orders."""
    found = []
    for question, of_question in zip(questions, orders, strict=True):
        rows = []
        for order in of_question.tolist():
            shuffled = replace(question, trajectories=tuple(question.trajectories[i] for i in order))
            one = replay_question(shuffled, policy, inside)
            rows.append(
                (
                    bool(one.correct),
                    one.num_tokens,
                    one.num_steps,
                    one.k,
                    any(d.block for d in one.decisions),
                    one.gave_up,
                )
            )
        found.append(np.mean(rows, axis=0))
    return Outcome(*np.array(found, dtype=np.float64).T)


def foresight(questions: Sequence[Question], orders: np.ndarray, policy: Policy, base: Outcome) -> Outcome:
    """Return what a policy would give that knew at once which k it ends with: the least latency for its answers."""
    steps = []
    for question, of_question in zip(questions, orders, strict=True):
        spent = [t.num_generated_tokens for t in question.trajectories]
        rows = []
        for order in of_question.tolist():
            shuffled = replace(question, trajectories=tuple(question.trajectories[i] for i in order))
            rows.append(max(spent[i] for i in order[: replay_question(shuffled, policy, None).k]))
        steps.append(np.mean(rows))
    return replace(base, steps=np.array(steps))


def crowd(store: Store, block: int) -> Callable[[Policy, InRun | None], list[Question]]:
    """Return what runs a policy live on all questions of a harvest, 64 rows in one batch."""
    config = store.manifest.config
    model = load_model("embedded")
    benchmark = load_benchmark(BenchmarkConfig(**config["benchmark"]))
    sampler = SamplerConfig(**config["sampler"])
    prompts = prompts_of(model, benchmark, sampler)
    questions = prepare(benchmark.items, prompts, open_embedder("embedded"))
    room = max(len(tokens) for _, tokens in prompts.values())
    stops = benchmark.stop_strings(model.tokenizer)

    def run(policy: Policy, inside: InRun | None) -> list[Question]:
        engine = Engine(model, sampler, rows=64, prompt_room=room, stop_strings=stops, snapshot_blocks=(block,))
        found = run_policy(
            model,
            engine,
            questions,
            policy,
            grader=benchmark.grader,
            seed=store.manifest.seed,
            aggregator=store.manifest.aggregator,
            feature_layer=config["features"]["layer"],
            in_run=inside if inside is not None else InRun(RANGE),
        )
        return list(found)

    return run


def compare(
    live: Sequence[Question], by_id: dict[str, Question], policy: Policy, inside: InRun | None
) -> dict[str, Any]:
    """Return on how many questions a live run decided and answered as the replay does, and what both spent."""
    same = tokens = replayed_tokens = 0
    for record in live:
        one = replay_question(by_id[record.question_id], policy, inside)
        said, expected = ([(d.k, d.block, d.about) for d in of.decisions] for of in (record, one))
        spent = sum(t.num_generated_tokens for t in record.trajectories)
        answered = (record.k, record.answer, record.correct) == (one.k, one.answer, one.correct)
        same += said == expected and answered and (spent == one.num_tokens or one.gave_up)
        tokens, replayed_tokens = tokens + spent, replayed_tokens + one.num_tokens
    return {"questions": len(live), "as_replayed": same, "tokens": tokens, "tokens_replayed": replayed_tokens}


def ranking(
    questions: Sequence[Question], store: Store, block: int, controllers: dict[str, Remembering]
) -> dict[str, Any]:
    """Return how well controllers rank the questions whose first two trajectories do not all end in the block.

    Args:
        questions: Of the harvest.
        store: The harvest.
        block: The block.
        controllers: By name; each is asked at the checkpoint that it was trained for, about its own label.
    """
    running = [q for q in questions if any(t.at(block) is not t for t in q.trajectories[: RANGE.start])]
    table = make_table(
        running, ks=RANGE.values, aggregator=store.manifest.aggregator, calibration=store.manifest.calibration
    )
    found: dict[str, Any] = {"num_questions": len(running), "share": len(running) / len(questions)}
    for name, controller in controllers.items():
        features = [
            features_for(
                controller,  # type: ignore[arg-type]
                [t.at(controller.block) for t in q.trajectories[: RANGE.start]],
                q.num_prompt_tokens,
                q.embedding,
            )
            for q in running
        ]
        p, labels = controller.predict_enough(features), table.labels(controller.label)[:, 0, 0]
        found[name] = {
            "label": controller.label,
            "share": float(labels.mean()),
            "auroc": auroc(p, labels),
            "stderr": auroc_stderr(p, labels, np.arange(len(p))),
        }
    return found


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--orders", type=int, default=4)
    options = parser.parse_args()
    store = Store.open(options.runs / "test")
    questions = sorted(store.scan(), key=lambda q: q.question_id)
    orders = np.stack([orders_of(q.question_id, RANGE.maximum, options.orders, 0) for q in questions])
    count = len(questions)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS) / count
    end, more, hopeless = (
        Remembering(load_controller(options.runs / "controllers" / use)) for use in ("end", "escalate", "give-up")
    )
    policy = DynamicK(RANGE, end)
    settings: dict[str, tuple[Policy, InRun | None]] = {"end only": (policy, None)}
    for threshold in (None, *ESCALATE):
        name = f"escalate early, {_shown(more, threshold)}"
        settings[name] = policy, InRun(RANGE, {options.block: more}, threshold)
    for threshold in (None, *GIVE_UP):
        name = f"give up, {_shown(hopeless, threshold)}"
        settings[name] = policy, InRun(RANGE, {}, None, {options.block: hopeless}, threshold)
    settings |= {f"fixed k = {k}": (FixedK(k), None) for k in RANGE.values}
    outcomes = {name: replayed(questions, orders, *each) for name, each in settings.items()}
    outcomes["end only, k known at once"] = foresight(questions, orders, policy, outcomes["end only"])
    rows = {name: outcome.row(outcomes["end only"], draws) for name, outcome in outcomes.items()}
    run, by_id = crowd(store, options.block), {q.question_id: q for q in questions}
    live = {}
    for name in ("end only", "escalate early, 0.1", "give up, 0.4"):
        live[name] = compare(run(*settings[name]), by_id, *settings[name])
        print(name, live[name], flush=True)
    report = {
        "num_questions": count,
        "orders": options.orders,
        "block": options.block,
        "sampler": store.manifest.sampler,
        "ranking": ranking(questions, store, options.block, {"end": end, "escalate": more, "give-up": hopeless}),
        "policies": rows,
        "live": live,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["ranking"], indent=1), table(rows), sep="\n")


def _shown(controller: Remembering, threshold: float | None) -> str:
    return f"{controller.threshold:.3g} (its own)" if threshold is None else f"{threshold:g}"


def table(rows: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| policy | accuracy % | difference, points | tokens | of end only | steps | of end only | mean k | "
        "asked inside % | given up % |",
        "|---|" + "---:|" * 9,
    ]
    for name, row in rows.items():
        cells = [f"{100 * row['correct']:.1f}", _span(row["accuracy_difference"], 100, "+.1f")]
        for cost in ("tokens", "steps"):
            cells += [f"{row[cost]:.0f}", _span(row[f"{cost}_ratio"], 1, ".3f")]
        cells += [f"{row['k']:.2f}", f"{100 * row['asked_inside']:.0f}", f"{100 * row['gave_up']:.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(found: dict[str, float], factor: float, form: str) -> str:
    value, low, high = (format(factor * found[name], form) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
