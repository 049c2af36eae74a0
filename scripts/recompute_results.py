"""Recompute from the stored records what estimates of an earlier version said of them: a table "was / is".

    python scripts/recompute_results.py docs/results/gsm8k-qwen2.5-coder-0.5b/records

Prints Markdown rows for ``docs/results/corrections.md``. The records hold answers, grades, tokens and log p of every
trajectory; rules that look at entropies, and trained controllers, cannot be replayed from them.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dps.analysis.replay.policies import Point, dynamic, fixed, folds_of
from dps.analysis.replay.samples import Samples, orders_of, scores, walk
from dps.benchmarks.answers import answer_key
from dps.decide import RULES
from dps.decide.aggregate import representative
from dps.estimates import Estimate, bounded, loss_is_below, mcnemar, questions_needed

MARGIN, ORDERS = 0.01, 32


def read(path: Path) -> dict[str, list[dict[str, str]]]:
    """Return the rows of a file of records by question, in order of trajectory."""
    found: dict[str, list[dict[str, str]]] = {}
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["question_id"], []).append(row)
    return {name: sorted(rows, key=lambda r: int(r["index"])) for name, rows in sorted(found.items())}


def samples_of(path: Path, series: str, aggregator: str = "majority") -> Samples:
    """Return a file of records as samples; what the records lack (entropies, prompts) is not a number."""
    rows = read(path)
    count = min(map(len, rows.values()))
    table = np.array(
        [
            [
                (
                    float(r["answer_class"] or -1),
                    float(r["base_logprob"]),
                    float(r["num_tokens"]),
                    np.nan,
                    np.nan,
                    float(r["num_generated_tokens"]),
                    float(r["correct"] == "True"),
                )
                for r in of[:count]
            ]
            for of in rows.values()
        ]
    ).transpose(2, 0, 1)
    return Samples(
        series=series,
        question_ids=tuple(rows),
        contents=tuple(rows),  # the records hold no texts
        classes=table[0].astype(np.int64),
        logprobs=table[1],
        sums=table[2:5],
        generated=table[5].astype(np.int64),
        right=table[6].astype(bool),
        prompt_tokens=np.zeros(len(rows), np.int64),
        levels=(None,) * len(rows),
        aggregator=aggregator,
        num_ungraded=0,
        num_ungradable=sum(r["correct"] == "" for of in rows.values() for r in of[:count]),
    )


def every_k(samples: Samples) -> tuple[Point, ...]:
    """Return every fixed k of the samples, averaged over orders."""
    orders = np.stack([orders_of(name, samples.num_trajectories, ORDERS, 0) for name in samples.question_ids])
    return fixed(samples.series, walk(samples, orders, range(1, samples.num_trajectories + 1), 0)).curve


def pooled(path: Path, other: Path) -> Samples:
    """Return the samples of two files of the same questions as those of one source, the second file's last.

    Each file numbers its answers for itself, so classes are those of the answers' keys.
    """
    one, two = samples_of(path, "mixed"), samples_of(other, "mixed")
    if one.question_ids != two.question_ids or one.num_trajectories != two.num_trajectories:
        raise SystemExit(f"Expected the same questions and as many samples of each in {path} and {other}.")
    first, second, classes = read(path), read(other), []
    for name in one.question_ids:
        keys = [answer_key(row["answer"]) if row["answer"] else None for row in (*first[name], *second[name])]
        numbers = {key: i for i, key in enumerate(dict.fromkeys(key for key in keys if key is not None))}
        classes.append([numbers.get(key, -1) for key in keys])
    joined = {n: np.concatenate([getattr(one, n), getattr(two, n)], axis=1) for n in ("logprobs", "generated", "right")}
    sums = np.concatenate([one.sums, two.sums], axis=2)
    return replace(one, classes=np.array(classes, dtype=np.int64), sums=sums, **joined)


def mixtures(samples: Samples) -> tuple[Point, ...]:
    """Return the votes of 1, 2, 3, ... samples of each half of pooled samples, averaged over orders."""
    half = samples.num_trajectories // 2
    orders = []
    for name in samples.question_ids:
        one, two = orders_of(name, half, ORDERS, 0), orders_of(name, half, ORDERS, 1) + half
        orders.append(np.stack([one, two], axis=-1).reshape(ORDERS, -1))
    return fixed("mixed", walk(samples, np.stack(orders), range(2, 2 * half + 1, 2), 0)).curve


def answered(path: Path, aggregator: str = "majority") -> tuple[np.ndarray, np.ndarray]:
    """Return whether the answer of each question's trajectories is right, and their tokens: shape (Q,) each."""
    right, tokens = [], []
    for rows in read(path).values():
        best = representative(
            [int(r["answer_class"] or -1) for r in rows], [float(r["base_logprob"]) for r in rows], aggregator
        )
        right.append(best is not None and rows[best]["correct"] == "True")
        tokens.append(sum(int(r["num_generated_tokens"]) for r in rows))
    return np.array(right), np.array(tokens, dtype=np.float64)


def points(found: Estimate, *, digits: int = 1) -> str:
    """Return a difference in points with its interval."""
    value, low, high = (f"{100 * v:+.{digits}f}" for v in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def line(what: str, values: np.ndarray, more: str = "") -> str:
    """Return a row: what, the difference with its interval, whether it shows no loss, questions for 80 % power."""
    needed = questions_needed(values)
    shown = "yes" if loss_is_below(values, MARGIN) else "no"
    return f"| {what} | {points(bounded(values))}{more} | {shown} | {'' if needed is None else f'{needed:,}'} |"


def live(records: Path) -> Iterator[str]:
    """Yield the live runs against k = 8, and HumanEval and MATH500."""
    reference, _ = answered(records / "live-power.csv.gz")
    for name in ("gbdt", "mlp-h", "mlp-hq", "gbdt-extended"):
        right, _ = answered(records / f"live-{name}.csv.gz")
        p_value = mcnemar(right, reference)["p_value"]
        yield line(f"live, {name} - k = 8", right.astype(float) - reference, f", McNemar p = {p_value:.2f}")
    power = samples_of(records / "math500-power.csv.gz", "power")
    for name in ("lowtemp", "plain"):
        rival = samples_of(records / f"math500-{name}.csv.gz", name)
        gaps = power.right[:, 0].astype(float) - rival.right[:, 0]
        p_value = mcnemar(power.right[:, 0], rival.right[:, 0])["p_value"]
        yield line(f"MATH500, one trajectory - {name}", gaps, f", McNemar p = {p_value:.2f}")


def humaneval(records: Path, aggregator: str) -> Iterator[str]:
    """Yield HumanEval: accuracies of fixed k over orders, and the controller against k = 8."""
    files = {name: records / f"humaneval-{name}.csv.gz" for name in ("power", "lowtemp", "plain", "gbdt-extended")}
    for name in ("power", "lowtemp", "plain"):
        samples = samples_of(files[name], name, aggregator)
        curve = every_k(samples)
        for k in (1, 4, samples.num_trajectories):
            natural = walk(samples, np.arange(samples.num_trajectories)[None, None].repeat(100, axis=0), [k], 0)
            was, now = natural.correct[:, 0, 0].mean(), curve[k - 1].correct.mean()
            yield f"| HumanEval, {name}, k = {k}: as sampled / over orders | {100 * was:.1f} / {100 * now:.1f} | | |"
    reference, _ = answered(files["power"], aggregator)
    right, _ = answered(files["gbdt-extended"], aggregator)
    yield line("HumanEval, GBDT extended - k = 8", right.astype(float) - reference)


def gsm8k(records: Path, split: str, rivals: dict[str, str]) -> Iterator[str]:
    """Yield a split of GSM8K: k = 8 against others at matched tokens over every k, and the rules that vote."""
    power = samples_of(records / f"{split}-power.csv.gz", "power")
    orders = np.stack([orders_of(name, 8, ORDERS, 0) for name in power.question_ids])
    walked = walk(power, orders, (2, 4, 6, 8), 0)
    k2, *_, k8 = fixed("power", walked).curve
    yield line(f"{split}, k = 8 - k = 2", k8.correct - k2.correct)
    folds = folds_of(power.question_ids, 5, 0)
    for name in ("adaptive-consistency", "esc", "sprt"):
        rule = RULES[name]
        if name == "esc":
            rule = type(rule)(window=8)
        p_inc = scores([rule.enough(seen) for seen in walked.seen], walked)
        at = dynamic(name, "rule", "power", walked, p_inc, folds, MARGIN).chosen
        share = at.tokens.mean() / k8.tokens.mean()
        yield line(f"{split}, {name} - k = 8, threshold of other folds", at.correct - k8.correct, f" at {share:.2f}")
    for name, file in rivals.items():
        rival = samples_of(records / f"{file}.csv.gz", name)
        common = sorted(set(rival.question_ids) & set(power.question_ids))
        place = {question: i for i, question in enumerate(power.question_ids)}
        rows = [place[question] for question in common]
        rival = rival.on(common)
        gaps = power.right[rows].mean(axis=1) - rival.right.mean(axis=1)
        yield line(f"{split}, one trajectory - one {name}", gaps)
        last = every_k(rival)[-1]
        share = last.tokens.mean() / k8.tokens[rows].mean()
        what = f"{split}, k = 8 - {rival.num_trajectories} {name}, {share:.2f} of its tokens"
        yield line(what, k8.correct[rows] - last.correct)


def cheap(records: Path, *splits: str) -> Iterator[str]:
    """Yield what needs no Metropolis-Hastings steps: a vote of two temperatures, and the likeliest of few samples.

    Args:
        records: The folder.
        *splits: Of one or several splits together.
    """
    power = [samples_of(records / f"{split}-power.csv.gz", "power") for split in splits]
    files = [[records / f"{split}-{name}.csv.gz" for name in ("lowtemp", "plain")] for split in splits]
    name, k8 = " and ".join(splits), _joined([every_k(samples)[-1] for samples in power])
    votes = [mixtures(pooled(*pair)) for pair in files]
    for number in (1, 2, 4, 8, 16):
        correct, tokens = _joined([curve[number - 1] for curve in votes])
        what = f"vote of {number} low-temperature and {number} plain - k = 8, {tokens.mean() / k8[1].mean():.2f}"
        yield line(f"{name}, {what} of its tokens", correct - k8[0])
    one = np.concatenate([samples.right.mean(axis=1) for samples in power])
    spent = np.concatenate([samples.generated.mean(axis=1) for samples in power])
    for place, rival in enumerate(("low-temperature", "plain")):
        likeliest = [every_k(samples_of(pair[place], rival, "best_logprob")) for pair in files]
        for number in (2, 4, 8, 10, 16):
            correct, tokens = _joined([curve[number - 1] for curve in likeliest])
            what = f"one trajectory, {one.mean():.1%} - likeliest of {number} {rival}, {correct.mean():.1%}"
            yield line(f"{name}, {what}, {tokens.mean() / spent.mean():.2f} of its tokens", one - correct)


def _joined(points_of: list[Point]) -> tuple[np.ndarray, np.ndarray]:
    """Return whether answers are right and their tokens, of the questions of several splits: shape (Q,) each."""
    return np.concatenate([p.correct for p in points_of]), np.concatenate([p.tokens for p in points_of])


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--humaneval_aggregator", default="majority")
    options = parser.parse_args()
    print(
        "| what | points [95 %] | a loss of 1 point excluded | questions that would decide, 80 % |\n|---|---|---|---:|"
    )
    for split, rivals in {
        "train": {"lowtemp": "train-lowtemp", "plain": "train-plain"},
        "test": {"lowtemp": "test32-lowtemp", "plain": "test-plain"},
    }.items():
        for row in gsm8k(options.records, split, rivals):
            print(row, flush=True)
    for splits in (("train",), ("test",), ("train", "test")):
        for row in cheap(options.records, *splits):
            print(row, flush=True)
    for row in (*live(options.records), *humaneval(options.records, options.humaneval_aggregator)):
        print(row, flush=True)


if __name__ == "__main__":
    main()
