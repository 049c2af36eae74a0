"""``dps store import``: a store of responses that were sampled elsewhere, from tables and a benchmark's questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dps.benchmarks import Item, load_benchmark
from dps.chat import ChatPrompt
from dps.config import ImportConfig
from dps.decide.aggregate import answer_of
from dps.decide.ladder import POWER, Ladder
from dps.errors import InputError
from dps.sampler.arms import arms_of
from feature_store import Manifest, Question, StoreWriter
from feature_store.files import new_folder
from feature_store.importing import Responses, read_responses
from feature_store.joining import Track
from feature_store.records import not_recorded

_BATCH = 256
"""Questions that are committed together."""


def import_store(config: ImportConfig, output: Path, track: Track) -> Manifest:
    """Write a store of the responses that tables hold; nothing is left of one that cannot be made.

    Args:
        config: Which tables, and what else is known of the run.
        output: The folder to make.
        track: Shows the progress.

    Returns:
        The store's manifest.

    Raises:
        InputError: If questions, embedder or prompt states cannot be used or do not fit the tables.
        StoreError: If a table cannot be used, or the folder holds something.
    """
    paths = {arm: Path(path) for arm, path in config.records.items()}
    responses = read_responses(paths)
    ids = responses.question_ids
    ladder = Ladder.parse([f"{arm} {count}" for arm, count in responses.totals.items()])
    items, benchmark = _questions(config, ids)
    prompts = _prompts(config, items)
    embed, embedder = _embedder(config)
    states, layers = read_prompt_states(config.prompt_states, ids)
    name = POWER if ladder.arms == (POWER,) else "harvest"
    common = {
        "kind": "harvest",
        "policy": {"name": name, "family": "fixed", "ladder": ladder.texts()},
        "aggregator": config.aggregator,
        "seed": config.seed,
        "model": {**config.model, **embedder, **({"prompt_layers": layers} if layers else {})},
        "benchmark": benchmark,
        "arms": {name: asdict(arm) for name, arm in arms_of(config.arms, [ladder], config.sampler).items()},
    }
    content = {arm: hashlib.sha256(path.read_bytes()).hexdigest() for arm, path in paths.items()}
    digest = hashlib.sha256(json.dumps({**common, "records": content}, sort_keys=True, default=str).encode())
    manifest = Manifest(
        **common,
        calibration=config.calibration,
        device=config.device,
        config=asdict(config),
        fingerprint=digest.hexdigest()[:16],
        question_ids=list(ids),
    )
    counted, prefills = responses.about("num_prompt_tokens"), responses.about("prefill_s")
    with new_folder(output) as folder, track(f"import into {output}", len(ids)) as bar:
        writer = StoreWriter.open(folder, manifest)
        for start in range(0, len(ids), _BATCH):
            numbers = range(start, min(start + _BATCH, len(ids)))
            embeddings = embed([items[n].question for n in numbers])
            questions = [
                Question(
                    **asdict(items[n]),
                    prompt=prompts[n][0],
                    num_prompt_tokens=prompts[n][1] or counted[n],
                    embedding=embedding,
                    prompt_hidden=states[n],
                    prefill_s=prefills[n],
                    **_of_responses(responses, n, config.aggregator),
                )
                for n, embedding in zip(numbers, embeddings, strict=True)
            ]
            writer.commit(questions)
            bar.advance(len(numbers))
    return manifest


def _of_responses(responses: Responses, number: int, aggregator: str) -> dict[str, Any]:
    """Return what a question's record has of its responses."""
    trajectories = responses.of(number)
    answer, correct = answer_of(trajectories, aggregator)
    return {
        **dict.fromkeys(("embedding_s", "controller_s"), 0.0),
        "latency_s": max(t.finished_s for t in trajectories),
        "answer": answer,
        "correct": correct,
        "decisions": (),
        "trajectories": trajectories,
    }


def _questions(config: ImportConfig, ids: Sequence[str]) -> tuple[list[Item], dict[str, Any]]:
    """Return the question of each id, and what the manifest says of the benchmark."""
    if config.questions is None:
        return [Item(name, "", None) for name in ids], config.benchmark
    benchmark = load_benchmark(config.questions, config.model.get("name"))
    known = {item.question_id: item for item in benchmark.items}
    if lacking := [name for name in ids if name not in known]:
        raise InputError(
            f"Expected every question of the records in {benchmark.source}, but {len(lacking):,} are not there, such "
            f"as {lacking[0]} (it has {benchmark.items[0].question_id}, ...): set questions to their benchmark and "
            "split, without a limit."
        )
    return [known[name] for name in ids], {**benchmark.identity(), **config.benchmark}


def _prompts(config: ImportConfig, items: Sequence[Item]) -> list[tuple[str, int]]:
    """Return the prompt of each question and its number of tokens; empty and 0 without a tokenizer."""
    if config.tokenizer is None or config.questions is None:
        return [("", 0)] * len(items)
    from dps.model import load_tokenizer

    try:
        tokenizer = load_tokenizer(config.tokenizer, {"revision": None})
    except (OSError, ValueError) as error:
        raise InputError(f"Could not load the tokenizer {config.tokenizer}: {str(error).splitlines()[0]}") from error
    benchmark = load_benchmark(config.questions, config.model.get("name"))
    texts = [benchmark.render(item, tokenizer) for item in items]
    return [(t, len(tokenizer(t, add_special_tokens=not isinstance(t, ChatPrompt))["input_ids"])) for t in texts]


def _embedder(config: ImportConfig) -> tuple[Callable[[Sequence[str]], np.ndarray], dict[str, str]]:
    """Return what embeds N questions, shape (N, E), and what the manifest says of it."""
    if config.embedder is None:
        return lambda questions: np.zeros((len(questions), 0), np.float32), {}
    from dps.run.worker import open_embedder

    embedder = open_embedder(config.embedder)
    embedder.check_there()
    return embedder.embed, {"embedder": embedder.identity}


def read_prompt_states(paths: Sequence[str], ids: Sequence[str]) -> tuple[list[np.ndarray], list[int]]:
    """Return the prompt states of each question as a record has them, each (L * 2 * D,) float32, and the L layers.

    Args:
        paths: ``.npz`` files with the arrays ``question_ids`` (Q,), ``layers`` (L,) and ``states`` (Q, L, 2, D): of
            each layer the state at the prompt's last token, then the mean over its tokens. All have the same layers.
        ids: The questions; each must be in a file.

    Raises:
        InputError: If a file cannot be read or is of another form, or a question is in none.
    """
    found: dict[str, np.ndarray] = {}
    layers: list[int] | None = None
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                names, of_file, states = (file[name] for name in ("question_ids", "layers", "states"))
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise InputError(
                f"Expected prompt states in {path}, the arrays question_ids, layers and states of an .npz file, but "
                f"it cannot be read ({error}): make it again."
            ) from error
        if states.ndim != 4 or states.shape[:3] != (len(names), len(of_file), 2) or not np.isfinite(states).all():
            raise InputError(
                f"Expected finite prompt states of the shape ({len(names)}, {len(of_file)}, 2, D) in {path}, for its "
                f"questions and layers, got the shape {states.shape}: make it again."
            )
        if layers is not None and layers != of_file.tolist():
            raise InputError(f"Expected prompt states of the layers {layers} in {path}, got {of_file.tolist()}.")
        layers = of_file.tolist()
        found |= zip(names.tolist(), states.reshape(len(names), -1).astype(np.float32), strict=True)
    if layers is None:
        return [not_recorded()] * len(ids), []
    if lacking := [name for name in ids if name not in found]:
        raise InputError(
            f"Expected prompt states of every question in {', '.join(paths)}, but {len(lacking):,} have none, such as "
            f"{lacking[0]}: add the file that has them."
        )
    return [found[name] for name in ids], layers
