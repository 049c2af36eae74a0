"""What a study's stores say in numbers: accuracy of k = 1, 2, ... by source, speed, acceptance, GPU time.

    python scripts/study_summary.py runs/gsm8k-qwen2.5-coder-0.5b --output docs/results/gsm8k-qwen2.5-coder-0.5b

Reads the stores that `scripts/study_gsm8k.sh` made; writes ``summary.json``, ``summary.md`` and ``records/*.csv.gz``
(every trajectory's counts, answer, grade and log p; no text).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from dps.replay.compare import mean, resamples
from dps.replay.policies import fixed
from dps.replay.samples import orders_of, read_samples, walk
from feature_store import Store
from feature_store.tools import export

SPLITS = ("train", "test")
SOURCES = {"power": "{split}", "lowtemp": "rivals-{split}/lowtemp", "plain": "rivals-{split}/plain"}
ORDERS, RESAMPLES = 32, 1000


def describe(store: Store, folder: Path) -> dict[str, Any]:
    """Return the numbers of one store; standard errors are over questions, k is averaged over orders."""
    samples = read_samples(store.manifest, store, folder.name)
    count = samples.num_trajectories
    orders = np.stack([orders_of(name, count, ORDERS, 0) for name in samples.question_ids])
    walked = walk(samples, orders, range(1, count + 1), 0)
    weights = resamples(len(samples.question_ids), RESAMPLES, 0)
    by_k = []
    for k, point in zip(walked.ks, fixed(samples.series, walked).curve, strict=True):
        accuracy = mean(point.correct, weights)
        stderr = float(point.correct.std(ddof=1) / np.sqrt(len(point.correct)))
        by_k.append({"k": k, **accuracy.plain(), "stderr": stderr, "tokens": float(point.tokens.mean())})
    any_right = samples.right.any(axis=1)
    log = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines() if line.strip()]
    last = log[-1]
    trajectories = [t for question in store for t in question.trajectories]
    proposed = sum(t.mh_proposed for t in trajectories)
    tokens = sum(t.num_generated_tokens for t in trajectories)
    return {
        "questions": len(samples.question_ids),
        "trajectories": count,
        "accuracy_one": {
            "value": float(samples.right.mean()),
            "stderr": float(samples.right.mean(axis=1).std(ddof=1) / np.sqrt(len(samples.right))),
        },
        "accuracy_by_k": by_k,
        "any_right": {
            "value": float(any_right.mean()),
            "stderr": float(any_right.std(ddof=1) / np.sqrt(len(any_right))),
        },
        "tokens": tokens,
        "tokens_per_trajectory": tokens / len(trajectories),
        "response_tokens": sum(len(t.tokens) for t in trajectories) / len(trajectories),
        "logprob": float(np.mean([t.base_logprob for t in trajectories])),
        "acceptance": sum(t.mh_accepted for t in trajectories) / proposed if proposed else None,
        "cut_at_the_limit": sum(t.ending == "length" for t in trajectories) / len(trajectories),
        "seconds": last["elapsed_s"],
        "tokens_per_s": tokens / last["elapsed_s"],
        "gpu_gib": last["gpu_gib"],
    }


def table(summary: dict[str, Any]) -> str:
    """Return the accuracies as Markdown."""
    lines = ["| split | source | questions | one trajectory % | majority of k = 2 | 4 | 8 | 16 | any right % | tokens "
             "each | log p | tokens/s |", "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for split, sources in summary.items():
        for name, found in sources.items():
            at = {entry["k"]: entry for entry in found["accuracy_by_k"]}
            cells = [
                f"{100 * at[k]['value']:.1f} ± {100 * at[k]['stderr']:.1f}" if k in at else "" for k in (2, 4, 8, 16)
            ]
            one, bound = found["accuracy_one"], found["any_right"]
            lines.append(
                f"| {split} | {name} | {found['questions']:,} | {100 * one['value']:.1f} ± {100 * one['stderr']:.1f} | "
                f"{' | '.join(cells)} | {100 * bound['value']:.1f} ± {100 * bound['stderr']:.1f} | "
                f"{found['tokens_per_trajectory']:,.0f} | {found['logprob']:.1f} | {found['tokens_per_s']:,.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the stores, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    summary: dict[str, Any] = {}
    for split in SPLITS:
        summary[split] = {}
        for source, pattern in SOURCES.items():
            folder = options.stores / pattern.format(split=split)
            summary[split][source] = describe(Store.open(folder), folder)
            export(folder, options.output / "records" / f"{split}-{source}.csv.gz")
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (options.output / "summary.md").write_text(table(summary))
    print(table(summary))


if __name__ == "__main__":
    main()
