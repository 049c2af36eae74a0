"""Make a harvest of real answers and made-up hidden states that name the question, to try regularization on.

    python scripts/make_nuisance_harvest.py docs/results/gsm8k-qwen2.5-coder-0.5b/records/train-power.csv.gz \
        runs/nuisance/harvest

Lengths, answers, grades, log p, accepted steps and tokens are those of the records: 1,500 questions of GSM8K x 8
trajectories of Qwen2.5-Coder-0.5B. Nothing else was kept of them, so hidden states (896) and question embeddings (384)
are drawn: the question's own random vector, which its trajectories share, noise of the trajectory and of the block, and
in one random direction a little of how often the question is answered rightly. A network can learn the training
questions by heart from them and hardly anything about others, which is how real ones hurt. Entropies and top-1
probabilities are functions of log p; prompts' lengths are drawn.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from dps.decide.aggregate import answer_of
from feature_store import Manifest, Question, StoreWriter, Trajectory

HIDDEN, EMBEDDING, BLOCK_TOKENS = 896, 384, 48
TRAJECTORY_NOISE, BLOCK_NOISE = 0.3, 0.5
"""Standard deviations beside the question's own vector, which has 1."""
SIGNAL = 1.0
"""Length of the shift per standard deviation of the share of right answers."""
PER_SEGMENT = 100


def main() -> None:
    """Read the records and write the store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="a records file of power sampling with 8 trajectories")
    parser.add_argument("output", type=Path)
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    options = parser.parse_args()
    manifest = Manifest(
        kind="harvest",
        policy={"name": "power", "family": "fixed", "start": 2, "step": 2, "maximum": 8},
        aggregator="majority",
        seed=0,
        model={"name": "made-up", "fingerprint": "nuisance", "hidden_size": HIDDEN, "feature_layer": 11},
        benchmark={"name": "gsm8k", "split": "train"},
        sampler={"block_size": BLOCK_TOKENS},
        calibration={"seconds_per_token": 1e-5, "prefill_seconds_per_token": 1e-6, "rows": 1},
        fingerprint="nuisance",
    )
    writer = StoreWriter.open(options.output, manifest)
    questions = list(read(options.records))[: options.limit]
    for start in range(0, len(questions), PER_SEGMENT):
        writer.commit(questions[start : start + PER_SEGMENT])
    print(f"{options.output}: {len(questions)} questions")


def read(path: Path) -> Iterator[Question]:
    """Yield the questions of a records file."""
    direction = np.random.default_rng(0).normal(size=HIDDEN)
    direction /= np.linalg.norm(direction)
    with gzip.open(path, "rt", newline="") as file:
        for number, (question_id, rows) in enumerate(groupby(csv.DictReader(file), itemgetter("question_id"))):
            yield question_of(number, question_id, list(rows), direction)


def question_of(number: int, question_id: str, rows: list[dict[str, str]], direction: np.ndarray) -> Question:
    """Return one question with made-up hidden states."""
    rng = np.random.default_rng([1, number])
    share = np.mean([row["correct"] == "True" for row in rows])
    own = rng.normal(size=HIDDEN) + SIGNAL * (share - 0.35) / 0.35 * direction
    trajectories = tuple(trajectory_of(row, own, rng) for row in rows)
    answer, correct = answer_of(trajectories)
    return Question(
        question_id=question_id, question="", prompt="", gold="", metadata={},
        num_prompt_tokens=int(rng.integers(60, 200)), embedding=rng.normal(size=EMBEDDING).astype(np.float32),
        prefill_s=0.0, embedding_s=0.0, controller_s=0.0, latency_s=0.0, answer=answer, correct=correct, decisions=(),
        trajectories=trajectories,
    )  # fmt: skip


def trajectory_of(row: dict[str, str], own: np.ndarray, rng: np.random.Generator) -> Trajectory:
    """Return one trajectory of the records."""
    tokens = int(row["num_tokens"])
    counts = np.diff([*range(0, tokens, BLOCK_TOKENS), tokens]).astype(np.int32)
    logprob = float(row["base_logprob"])
    nats = -logprob / tokens
    mine = own + TRAJECTORY_NOISE * rng.normal(size=HIDDEN)
    return Trajectory(
        index=int(row["index"]), tokens=np.zeros(tokens, np.int32), text="", answer=row["answer"] or None,
        answer_class=int(row["answer_class"]), correct=row["correct"] == "True", base_logprob=logprob,
        proposal_logprob=float(row["proposal_logprob"]), num_generated_tokens=int(row["num_generated_tokens"]),
        mh_proposed=int(row["mh_proposed"]), mh_accepted=int(row["mh_accepted"]), compute_s=0.0, started_s=0.0,
        finished_s=0.0, block_num_tokens=counts, block_logprob=-nats * counts, block_entropy=1.5 * nats * counts,
        block_top1=np.exp(-nats) * counts, ending=row["ending"],
        hidden=(mine + BLOCK_NOISE * rng.normal(size=(len(counts), HIDDEN))).astype(np.float32),
    )  # fmt: skip


if __name__ == "__main__":
    main()
