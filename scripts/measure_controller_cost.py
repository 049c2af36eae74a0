"""Measure what it costs to ask a controller: the feature pass, the features, the call, beside the sampling itself.

    python scripts/measure_controller_cost.py runs/replay-live/harvest runs/replay-live/gbdt-extended \
        runs/replay-live/mlp-h runs/replay-live/mlp-hq --output docs/results/controllers/cost.json

Takes questions of a harvest with all their trajectories, samples them again, and reads them again for their hidden
states. All times are milliseconds of one core's CPU time, which others on the machine do not change much; the fastest
of several counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dps.model import load_model
from dps.run.scheduler import features_for
from dps.sampler.engine import ChainRequest, Engine
from dps.sampler.settings import SamplerConfig
from dps.sampler.streams import stream_key
from dps.sampler.teacher import block_hidden
from feature_store import Store
from lightning_modules.load import load_controller

REPEATS = 3
QUESTIONS = 64
"""Asked about together."""
CALLS = 100
"""Timed together, because one is shorter than the clock can tell."""
ROWS = 32
"""Chains that are sampled at a time."""


def fastest_ms(call: Callable[[], Any]) -> float:
    """Return the shortest of several times of a call, milliseconds."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return 1000 * min(times)


def ask(controller: Any, features: list[Any]) -> None:
    """Ask a controller many times about the same questions."""
    for _ in range(CALLS):
        controller.predict_enough(features)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("harvest", type=Path, help="harvest of the embedded model")
    parser.add_argument("controllers", nargs="+", type=Path, help="run folders of dps fit")
    parser.add_argument("--output", type=Path, default=Path("docs/results/controllers/cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store.open(options.harvest)
    model, sampler = load_model(), SamplerConfig(**store.manifest.sampler)
    questions = list(islice(store, QUESTIONS))
    prompts = [tuple(model.encode(question.prompt)) for question in questions]
    pairs = [
        (prompt, trajectory.tokens.tolist())
        for prompt, question in zip(prompts, questions, strict=True)
        for trajectory in question.trajectories
    ]
    layer = int(store.manifest.model["feature_layer"])

    def sample() -> None:
        engine = Engine(model, sampler, rows=ROWS, prompt_room=max(map(len, prompts)))
        for prompt, question in zip(prompts, questions, strict=True):
            for t in question.trajectories:
                stream = stream_key(store.manifest.seed, question.question_id, t.index)
                engine.submit(ChainRequest((question.question_id, t.index), prompt, stream))
        while not engine.idle:
            engine.poll()

    tokens = sum(t.num_generated_tokens for q in questions for t in q.trajectories) / len(pairs)
    report: dict[str, Any] = {
        "num_questions": len(questions),
        "k": len(questions[0].trajectories),
        "rows": ROWS,
        "tokens_of_a_trajectory": tokens,
        "sampling_of_a_trajectory_ms": fastest_ms(sample) / len(pairs),
        "feature_pass_of_a_trajectory_ms": fastest_ms(
            lambda: block_hidden(model, pairs, layer=layer, block_size=sampler.block_size)
        )
        / len(pairs),
        "controllers": [],
    }
    for path in options.controllers:
        controller = load_controller(path)

        def features(controller: Any = controller) -> list[Any]:
            return [features_for(controller, q.trajectories, q.num_prompt_tokens, q.embedding) for q in questions]

        asked = features()
        report["controllers"].append(
            {
                "folder": path.name,
                "features_of_a_question_ms": fastest_ms(features) / len(questions),
                "call_about_one_question_ms": fastest_ms(lambda c=controller, a=asked: ask(c, a[:1])) / CALLS,
                "call_about_64_questions_ms": fastest_ms(lambda c=controller, a=asked: ask(c, a)) / CALLS,
            }
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
