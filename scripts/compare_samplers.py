"""Compare settings of the sampler on a real model: tokens, log p and accuracy of the same questions, paired.

    python scripts/compare_samplers.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --limit 100 --output runs/compare

Each variant samples k trajectories of every question in one process. Written are ``compare.json`` (settings, machine,
the table), ``compare.csv`` (the table) and ``chains.csv`` (tokens, log p and grade of every trajectory, no text). A
variant that is in ``chains.csv`` already is not sampled again.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS: dict[str, dict[str, Any]] = {
    "lowtemp": dict(num_mh_steps=0),
    "steps-2": dict(num_mh_steps=2),
    "steps-5": dict(num_mh_steps=5),
    "steps-10": dict(num_mh_steps=10),
    "entropy-5": dict(num_mh_steps=5, cut_law="entropy"),
    "tries2-2": dict(num_mh_steps=2, num_tries=2),
    "tries2-5": dict(num_mh_steps=5, num_tries=2),
    "max-swap-5": dict(num_mh_steps=5, accept_rule="max_swap"),
    "annealed3-5": dict(num_mh_steps=5, anneal_blocks=3),
}
"""What is compared: with no steps the sampler is low-temperature sampling at 1/alpha."""
COLUMNS = (
    "variant", "question_id", "index", "num_tokens", "num_generated_tokens", "mh_proposed", "mh_accepted", "mh_changed",
    "base_logprob", "answer_class", "correct",
)  # fmt: skip


def sample(options: argparse.Namespace, names: list[str], path: Path) -> dict[str, Any]:
    """Sample the variants that are missing, append each to ``chains.csv``, and return what is known of the machine."""
    import torch
    import transformers

    from dps.benchmarks import BenchmarkConfig, load_benchmark
    from dps.decide import FixedK
    from dps.model import load_model
    from dps.model_config import ModelConfig
    from dps.run.scheduler import run_policy
    from dps.run.worker import prepare, prompts_of
    from dps.sampler.engine import Engine
    from dps.sampler.settings import SamplerConfig

    benchmark = load_benchmark(
        BenchmarkConfig(name=options.benchmark, path=options.path, split=options.split, limit=options.limit, seed=0)
    )
    model = load_model(ModelConfig(name=options.model))
    on_gpu = model.device.type == "cuda"
    for name in names:
        config = SamplerConfig(
            alpha=options.alpha,
            block_size=options.block_size,
            max_new_tokens=options.max_new_tokens,
            **VARIANTS[name],
        ).check()
        prompts = prompts_of(model, benchmark, config)
        room = max(len(tokens) for _, tokens in prompts.values())
        started = time.perf_counter()
        stops = benchmark.stop_strings(model.tokenizer)
        engine = Engine(model, config, rows=options.rows, prompt_room=room, stop_strings=stops)
        questions = prepare(benchmark.items, prompts, None)
        lines = []
        for question in run_policy(
            model, engine, questions, FixedK(options.k), grader=benchmark.grader, seed=options.seed
        ):
            for t in question.trajectories:
                trace = t.steps.logprob
                changed = int(np.sum(t.steps.accepted[1:] & (np.diff(trace) != 0))) if len(trace) else 0
                lines.append(
                    (name, question.question_id, t.index, len(t.tokens), t.num_generated_tokens, t.mh_proposed,
                     t.mh_accepted, changed, repr(t.base_logprob), t.answer_class, int(bool(t.correct)))
                )  # fmt: skip
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(COLUMNS)
            writer.writerows(lines)
        print(f"{name}: {len(lines)} trajectories in {time.perf_counter() - started:.1f} s", file=sys.stderr)
        del engine
        if on_gpu:
            torch.cuda.empty_cache()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def read(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the trajectories of each variant."""
    found: dict[str, list[dict[str, str]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                found.setdefault(line["variant"], []).append(line)
    return found


def by_question(lines: list[dict[str, str]], column: str) -> np.ndarray:
    """Return a column as a table, questions in order of id: shape (questions, k)."""
    table: dict[str, dict[int, float]] = {}
    for line in lines:
        table.setdefault(line["question_id"], {})[int(line["index"])] = float(line[column])
    return np.array([[row[i] for i in sorted(row)] for _, row in sorted(table.items())])


def vote(classes: np.ndarray, correct: np.ndarray, logprob: np.ndarray) -> np.ndarray:
    """Return whether each question's majority answer is right, shape (questions,)."""
    from dps.decide.aggregate import representative

    winners = [representative(c, p) for c, p in zip(classes.astype(int), logprob, strict=True)]
    return np.array([0.0 if w is None else right[w] for w, right in zip(winners, correct, strict=True)])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean over questions and its standard error."""
    from dps.estimates import estimate

    found = estimate(values)
    return found.value, found.stderr


def summarize(chains: dict[str, list[dict[str, str]]], reference: str) -> list[dict[str, Any]]:
    """Return one line for each variant; differences are paired by question with the reference variant."""
    tables = {name: {column: by_question(lines, column) for column in COLUMNS[3:]} for name, lines in chains.items()}
    summary = []
    for name, t in tables.items():
        proposed = t["mh_proposed"].sum()
        line: dict[str, Any] = {
            "variant": name,
            "questions": len(t["correct"]),
            "k": t["correct"].shape[1],
            "tokens_per_trajectory": t["num_generated_tokens"].mean(),
            "response_tokens": t["num_tokens"].mean(),
            "acceptance": t["mh_accepted"].sum() / proposed if proposed else None,
            "changed": t["mh_changed"].sum() / proposed if proposed else None,
        }
        measures = {
            "logprob": t["base_logprob"].mean(axis=1),
            "accuracy_k1": t["correct"].mean(axis=1),
            "accuracy_vote": vote(t["answer_class"], t["correct"], t["base_logprob"]),
        }
        for measure, values in measures.items():
            line[measure], line[f"{measure}_se"] = mean_and_error(values)
        if reference in tables:
            other = tables[reference]
            pairs = {
                "logprob": other["base_logprob"].mean(axis=1),
                "accuracy_k1": other["correct"].mean(axis=1),
                "accuracy_vote": vote(other["answer_class"], other["correct"], other["base_logprob"]),
            }
            for measure, values in pairs.items():
                line[f"{measure}_minus_{reference}"], line[f"{measure}_minus_{reference}_se"] = mean_and_error(
                    measures[measure] - values
                )
        summary.append({key: round(v, 4) if isinstance(v, float) else v for key, v in line.items()})
    return summary


def main() -> None:
    """Sample what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="hub id, folder, GGUF file or embedded")
    parser.add_argument("--benchmark", default="arithmetic")
    parser.add_argument("--path", help="file of the benchmark's questions")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=100, help="questions")
    parser.add_argument("--k", type=int, default=8, help="trajectories of each question")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--block-size", type=int, default=48)
    parser.add_argument("--max-new-tokens", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument(
        "--reference", choices=tuple(VARIANTS), default="steps-5", help="what the others are paired with"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "variants", "path")}
    settings["model"] = Path(options.model).name
    record = options.output / "compare.json"
    before = json.loads(record.read_text()) if record.exists() else {"settings": settings, "machine": {}}
    if before["settings"] != settings:
        sys.exit(f"{record} holds other settings; choose another --output.")
    record.write_text(json.dumps(before, indent=1) + "\n")
    path = options.output / "chains.csv"
    missing = [name for name in options.variants if name not in read(path)]
    if missing:
        before["machine"] = sample(options, missing, path)
    before["variants"] = {name: VARIANTS[name] for name in read(path)}
    before["summary"] = summarize(read(path), options.reference)
    record.write_text(json.dumps(before, indent=1) + "\n")
    columns = list(dict.fromkeys(key for line in before["summary"] for key in line))
    with (options.output / "compare.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(before["summary"])
    for line in before["summary"]:
        print("  ".join(f"{key} {line[key]}" for key in columns[:1] + columns[3:13]))


if __name__ == "__main__":
    main()
