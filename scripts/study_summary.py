"""What a study's stores say in numbers: accuracy of k = 1, 2, ... by source, paired differences, speed, acceptance.

    python scripts/study_summary.py runs/gsm8k-qwen2.5-coder-0.5b --output docs/results/gsm8k-qwen2.5-coder-0.5b

Reads those of the stores that `scripts/study_gsm8k.sh` made; writes ``summary.json``, ``summary.md`` and
``records/*.csv.gz`` (every trajectory's counts, answer, grade and log p; no text).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from dps.analysis.replay.compare import ratio, resamples
from dps.analysis.replay.policies import fixed
from dps.analysis.replay.samples import Samples, orders_of, read_samples, walk
from dps.estimates import bounded, questions_needed
from feature_store import Store
from feature_store.tools import export

STORES = {
    "train": {"power": "train"},
    "test": {"power": "test", "lowtemp": "rivals-test/lowtemp", "plain": "rivals-test/plain"},
    "humaneval": {"power": "humaneval/power", "lowtemp": "humaneval/lowtemp", "plain": "humaneval/plain"},
    "math500": {"power": "math500/power", "lowtemp": "math500/lowtemp", "plain": "math500/plain"},
}
"""Folders of each source of samples, by the questions that they are of; the first two are GSM8K's splits."""
ORDERS, RESAMPLES = 32, 1000


def read(store: Store, folder: Path) -> Samples:
    """Return a store's samples."""
    return read_samples(store.manifest, store.scan(hidden=False), folder.name)


def one_trajectory(power: Samples, rival: Samples) -> dict[str, Any]:
    """Compare one trajectory of power sampling with one sample of a rival, paired by question.

    A question's accuracy is the mean over its trajectories, each of which is a draw of one.
    """
    common = sorted(set(power.question_ids) & set(rival.question_ids))
    one, other = power.on(common), rival.on(common)
    gaps = one.right.mean(axis=1) - other.right.mean(axis=1)
    weights = resamples(len(common), RESAMPLES, 0)
    difference = bounded(gaps)
    return {
        "rival": rival.series,
        "questions": len(common),
        "trajectories": [one.num_trajectories, other.num_trajectories],
        "difference": difference.plain(),
        "verdict": {1: "above", -1: "below", 0: "undecided"}[difference.sign],
        "questions_needed": questions_needed(gaps),
        "tokens_ratio": ratio(one.generated.mean(axis=1), other.generated.mean(axis=1), weights).plain(),
    }


def describe(store: Store, folder: Path) -> dict[str, Any]:
    """Return the numbers of one store; standard errors are over questions, k is averaged over orders."""
    samples = read(store, folder)
    count = samples.num_trajectories
    orders = np.stack([orders_of(name, count, ORDERS, 0) for name in samples.question_ids])
    walked = walk(samples, orders, range(1, count + 1), 0)
    by_k = []
    for k, point in zip(walked.ks, fixed(samples.series, walked).curve, strict=True):
        accuracy = bounded(point.correct, 0.0, 1.0)
        by_k.append({"k": k, **accuracy.plain(), "stderr": accuracy.stderr, "tokens": float(point.tokens.mean())})
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
    lines = [
        "| questions | source | | one trajectory % | vote of k = 2 | 4 | 8 | 16 | 64 | any right % | tokens each "
        "| log p | tokens/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for questions, found in summary.items():
        for name, source in found["sources"].items():
            at = {entry["k"]: entry for entry in source["accuracy_by_k"]}
            cells = [percent(at[k]) if k in at else "" for k in (2, 4, 8, 16, 64)]
            lines.append(
                f"| {questions} | {name} | {source['questions']:,} | {percent(source['accuracy_one'])} | "
                f"{' | '.join(cells)} | {percent(source['any_right'])} | {source['tokens_per_trajectory']:,.0f} | "
                f"{source['logprob']:.1f} | {source['tokens_per_s']:,.0f} |"
            )
    lines += [
        "",
        "| questions | one trajectory of power sampling minus one of | points | tokens |",
        "|---|---|---:|---:|",
    ]
    for questions, found in summary.items():
        for each in found["one_trajectory"]:
            gap = {name: f"{100 * value:+.1f}" for name, value in each["difference"].items()}
            lines.append(
                f"| {questions} | {each['rival']} | {gap['value']} [{gap['low']}, {gap['high']}] {each['verdict']} | "
                f"{each['tokens_ratio']['value']:.1f} x |"
            )
    return "\n".join(lines) + "\n"


def percent(found: dict[str, float]) -> str:
    """Return a share with its standard error, in percent."""
    return f"{100 * found['value']:.1f} ± {100 * found['stderr']:.1f}"


def main() -> None:
    """Read the stores that there are, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    summary: dict[str, Any] = {}
    for questions, folders in STORES.items():
        there = {
            name: options.stores / folder for name, folder in folders.items() if (options.stores / folder).exists()
        }
        if not there:
            continue
        samples = {name: read(Store.open(folder), folder) for name, folder in there.items()}
        summary[questions] = {
            "sources": {name: describe(Store.open(folder), folder) for name, folder in there.items()},
            "one_trajectory": [
                one_trajectory(samples["power"], rival)
                for name, rival in samples.items()
                if name != "power" and "power" in samples
            ],
        }
        for name, folder in there.items():
            export(folder, options.output / "records" / f"{questions}-{name}.csv.gz")
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (options.output / "summary.md").write_text(table(summary))
    print(table(summary))


if __name__ == "__main__":
    main()
