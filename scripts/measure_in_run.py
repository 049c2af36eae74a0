"""Measure what it is worth to ask controllers while trajectories run: to escalate early, and to give up, each alone.

    python scripts/measure_in_run.py --runs runs/in-run --output docs/results/in-run

``--runs`` holds ``test``, a harvest with snapshots of questions that trained nobody, and ``controllers`` with
``NAME-end``, ``NAME-escalate`` and ``NAME-give-up``, trained for the block ``--block`` (the commands are in
docs/results/in-run/README.md). Tokens and accuracy are replayed over the harvest in several orders of the trajectories.
Latency is measured live, one question at a time with a row for every trajectory: in decoding steps from admission to
answer, which no other load on the machine changes, and in seconds. What live runs decide is compared with the replay.
Writes ``in_run.json`` and prints tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dps.benchmarks import BenchmarkConfig, load_benchmark
from dps.features import CheckpointFeatures
from dps.model import load_model
from dps.policies import DynamicK, FixedK, InRun, KRange, Policy
from dps.replay.in_run import replay_question
from dps.replay.samples import orders_of
from dps.sampler.engine import Engine
from dps.sampler.settings import SamplerConfig
from dps.scheduler import features_for, run_policy
from dps.worker import open_embedder, prepare, prompts_of
from feature_store import Question, Snapshot, Store, Trajectory
from lightning_modules.load import Controller, load_controller
from lightning_modules.metrics import auroc, auroc_stderr
from lightning_modules.table import make_table

RANGE = KRange(2, 2, 8)
ESCALATE = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Thresholds of 1 - p_enough, besides the controller's own."""
GIVE_UP = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Thresholds of the probability that the question is solvable, besides the controller's own."""
DRAWS = 2000


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
    k: np.ndarray
    asked_inside: np.ndarray
    gave_up: np.ndarray

    def row(self, base: Outcome, draws: np.ndarray) -> dict[str, Any]:
        """Return its means, and its differences from another policy with paired 95 % intervals."""
        difference = draws @ (self.correct - base.correct)
        ratio = (draws @ self.tokens) / (draws @ base.tokens)
        means = {n: float(getattr(self, n).mean()) for n in ("correct", "tokens", "k", "asked_inside", "gave_up")}
        return means | {
            "accuracy_difference": _interval(float((self.correct - base.correct).mean()), difference),
            "tokens_ratio": _interval(float(self.tokens.sum() / base.tokens.sum()), ratio),
        }


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
            rows.append((bool(one.correct), one.num_tokens, one.k, any(d.block for d in one.decisions), one.gave_up))
        found.append(np.mean(rows, axis=0))
    return Outcome(*np.array(found, dtype=np.float64).T)


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """What live runs of one question at a time took; every array has shape (Q,)."""

    block: int
    records: list[Question]
    steps: np.ndarray
    seconds: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """Sampled tokens."""
        return np.array([sum(t.num_generated_tokens for t in q.trajectories) for q in self.records], np.float64)

    @property
    def overrun(self) -> np.ndarray:
        """Tokens of those that were sampled after the block at which the question was given up."""
        return np.array([sum(_overrun(t, self.block) for t in q.trajectories) for q in self.records], np.float64)

    def row(self, base: Live, draws: np.ndarray) -> dict[str, Any]:
        """Return its means, and its differences from another policy with paired 95 % intervals."""
        correct, other = (np.array([bool(q.correct) for q in one.records], np.float64) for one in (self, base))
        found: dict[str, Any] = {
            "correct": float(correct.mean()),
            "k": float(np.mean([q.k for q in self.records])),
            "overrun": float(self.overrun.mean()),
            "gave_up": float(np.mean([any(t.ending == "gave_up" for t in q.trajectories) for q in self.records])),
            "accuracy_difference": _interval(float((correct - other).mean()), draws @ (correct - other)),
        }
        for name in ("steps", "seconds", "tokens"):
            mine, theirs = getattr(self, name), getattr(base, name)
            found[name] = float(mine.mean())
            found[f"{name}_ratio"] = _interval(float(mine.sum() / theirs.sum()), (draws @ mine) / (draws @ theirs))
        return found


def _overrun(trajectory: Trajectory, block: int) -> int:
    then = trajectory.at(block)
    if trajectory.ending != "gave_up" or not isinstance(then, Snapshot):
        return 0
    return trajectory.num_generated_tokens - then.num_generated_tokens


def one_at_a_time(store: Store, ids: Sequence[str], block: int) -> Callable[[Policy, InRun | None], Live]:
    """Return what runs a policy live on these questions of a harvest, each alone."""
    config = store.manifest.config
    model = load_model("embedded")
    benchmark = load_benchmark(BenchmarkConfig(**config["benchmark"]))
    sampler = SamplerConfig(**config["sampler"])
    prompts = prompts_of(model, benchmark, sampler)
    wanted = set(ids)
    items = [item for item in benchmark.items if item.question_id in wanted]
    questions = sorted(prepare(items, prompts, open_embedder("embedded")), key=lambda q: q.question_id)
    room = max(len(tokens) for _, tokens in prompts.values())
    stops = benchmark.stop_strings(model.tokenizer)

    def run(policy: Policy, inside: InRun | None) -> Live:
        engine = Engine(
            model, sampler, rows=RANGE.maximum, prompt_room=room, stop_strings=stops, snapshot_blocks=(block,)
        )
        records, steps, seconds = [], [], []
        for question in questions:
            before, started = engine.num_steps, time.perf_counter()
            records += run_policy(
                model,
                engine,
                [question],
                policy,
                grader=benchmark.grader,
                seed=store.manifest.seed,
                aggregator=store.manifest.aggregator,
                feature_layer=config["features"]["layer"],
                in_run=inside if inside is not None else InRun(RANGE),
            )
            steps.append(engine.num_steps - before)
            seconds.append(time.perf_counter() - started)
        return Live(block, records, np.array(steps, np.float64), np.array(seconds))

    return run


def agree(live: Live, questions: dict[str, Question], policy: Policy, inside: InRun | None) -> int:
    """Return on how many questions the live run decided, answered and counted as the replay does."""
    count = 0
    for record in live.records:
        one = replay_question(questions[record.question_id], policy, inside)
        same = [(d.k, d.block, d.about) for d in record.decisions] == [(d.k, d.block, d.about) for d in one.decisions]
        count += same and (record.k, record.answer, record.correct) == (one.k, one.answer, one.correct)
    return count


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
    parser.add_argument("--names", nargs="+", default=["gbdt"])
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--orders", type=int, default=4)
    parser.add_argument("--live", type=int, default=200, help="questions that are run live")
    options = parser.parse_args()
    store = Store.open(options.runs / "test")
    questions = sorted(store.scan(), key=lambda q: q.question_id)
    by_id = {q.question_id: q for q in questions}
    orders = np.stack([orders_of(q.question_id, RANGE.maximum, options.orders, 0) for q in questions])
    rng = np.random.default_rng(0)

    def draws_of(count: int) -> np.ndarray:
        return rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count

    draws, live_draws = draws_of(len(questions)), draws_of(min(options.live, len(questions)))
    run = one_at_a_time(store, [q.question_id for q in questions[: options.live]], options.block)
    report: dict[str, Any] = {
        "num_questions": len(questions),
        "orders": options.orders,
        "live": options.live,
        "block": options.block,
        "sampler": store.manifest.sampler,
    }
    eight = run(FixedK(RANGE.maximum), None)
    for name in options.names:
        end, more, hopeless = (
            Remembering(load_controller(options.runs / "controllers" / f"{name}-{use}"))
            for use in ("end", "escalate", "give-up")
        )
        policy = DynamicK(RANGE, end)
        base, base_live = replayed(questions, orders, policy, None), run(policy, None)
        rows = {f"{name}": base.row(base, draws) | {"live": base_live.row(base_live, live_draws)}}
        rows[name]["live"]["agree"] = agree(base_live, by_id, policy, None)
        rows["fixed-k8"] = {"live": eight.row(base_live, live_draws)}
        uses = [("escalate", t, InRun(RANGE, {options.block: more}, t)) for t in (None, *ESCALATE)]
        uses += [("give-up", t, InRun(RANGE, {}, None, {options.block: hopeless}, t)) for t in (None, *GIVE_UP)]
        for use, threshold, inside in uses:
            own = (more if use == "escalate" else hopeless).threshold
            label = f"{name}, {use} {own if threshold is None else threshold:.3g}" + " (own)" * (threshold is None)
            live = run(policy, inside)
            rows[label] = replayed(questions, orders, policy, inside).row(base, draws)
            rows[label]["live"] = live.row(base_live, live_draws)
            rows[label]["live"]["agree"] = agree(live, by_id, policy, inside)
            print(label, flush=True)
        controllers = {"end": end, "escalate": more, "give-up": hopeless}
        report[name] = {"policies": rows, "ranking": ranking(questions, store, options.block, controllers)}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "in_run.json").write_text(json.dumps(report, indent=1) + "\n")
    for name in options.names:
        print(table(report[name]["policies"]))
        print(json.dumps(report[name]["ranking"], indent=1))


def table(rows: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| policy | accuracy % | difference, points | tokens | of the policy's alone | mean k | asked inside % | "
        "given up % | live: steps | of the policy's alone | seconds | overrun, tokens | as replayed |",
        "|---|" + "---:|" * 12,
    ]
    for name, row in rows.items():
        live = row["live"]
        if "correct" in row:
            cells = [f"{100 * row['correct']:.1f}", _span(row["accuracy_difference"], 100, "+.1f")]
            cells += [f"{row['tokens']:.0f}", _span(row["tokens_ratio"], 1, ".3f"), f"{row['k']:.2f}"]
            cells += [f"{100 * row['asked_inside']:.0f}", f"{100 * row['gave_up']:.1f}"]
        else:
            cells = [""] * 7
        cells += [f"{live['steps']:.0f}", _span(live["steps_ratio"], 1, ".3f"), f"{live['seconds']:.2f}"]
        cells += [f"{live['overrun']:.1f}", f"{live['agree']}" if "agree" in live else ""]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _span(found: dict[str, float], factor: float, form: str) -> str:
    value, low, high = (format(factor * found[name], form) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
