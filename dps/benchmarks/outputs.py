"""``dps outputs``: the responses of a store as the official ``alpaca_eval`` reads them, and an annotator's verdict.

Nothing here calls a model that judges: that is a program of the user's, which costs money and sees the responses.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dps.benchmarks.thinking import answer_part
from dps.decide.aggregate import representative
from dps.errors import InputError
from feature_store import Store
from feature_store.files import new_file


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often an annotator preferred these outputs to the reference model's."""

    value: float
    """Mean preference, 0 to 1; ties are halves."""
    stderr: float
    """Its standard error over instructions."""
    num_instructions: int
    """Instructions with a preference."""


def model_outputs(store: Store, k: int | None = None) -> list[dict[str, Any]]:
    """Return the store's answers in the form of ``model_outputs``, without what a reasoning model thought before them.

    Of the first k trajectories of a question (of all if k is None) the one with the highest log-probability is taken.
    InputError if a question has fewer than k trajectories, or a question no response.
    """
    manifest, outputs = store.manifest, []
    generator = f"{Path(str(manifest.model.get('name', 'model'))).name}-{manifest.policy['name']}"
    for question in store:
        used = question.trajectories if k is None else question.trajectories[:k]
        if k is not None and len(used) < k:
            raise InputError(f"Expected k = {k} trajectories of {question.question_id}, but the store has {len(used)}.")
        said = [answer_part(t.text, question.prompt) for t in used]
        classes = [-1 if text is None else 0 for text in said]  # nobody is to judge a thought that was cut short
        best = representative(classes, [t.base_logprob for t in used], "best_logprob")
        count = f"-k{k or len(used)}" if manifest.policy.get("family") == "fixed" else ""
        outputs.append(
            {
                "dataset": question.metadata.get("dataset", ""),
                "instruction": question.question,
                "output": (said[best] or "").strip() if best is not None else "",
                "generator": f"{generator}{count}",
            }
        )
    return outputs


def write_outputs(folder: Path, output: Path, k: int | None = None) -> int:
    """Write a store's ``model_outputs`` file; returns the number of instructions.

    InputError as :func:`model_outputs`; StoreError if the store cannot be read, or another file stands there.
    """
    outputs = model_outputs(Store.open(folder), k)
    text = json.dumps(outputs, ensure_ascii=False, indent=1) + "\n"
    with new_file(output) as file:
        file.write_bytes(text.encode("utf-8", "backslashreplace"))  # lone surrogates, which UTF-8 does not have
    return len(outputs)


def annotate(command: str, outputs: Path, folder: Path) -> WinRate:
    """Run the user's annotator on an outputs file and read the preferences that it wrote into ``annotations.json``.

    The command has {outputs} and {folder} where the paths go, and runs without a shell. InputError if the command
    cannot be run, fails, or leaves no preferences.
    """
    if "{outputs}" not in command:
        raise InputError(f"Expected {{outputs}} in annotator, where the file's path goes, got {command!r}.")
    folder.mkdir(parents=True, exist_ok=True)
    words = [word.format(outputs=outputs, folder=folder) for word in shlex.split(command)]
    try:
        code = subprocess.run(words, check=False).returncode
    except OSError as error:
        raise InputError(f"The annotator {words[0]} cannot be run ({error.strerror}): check annotator.") from error
    if code:
        raise InputError(f"The annotator {words[0]} ended with exit code {code}; its messages are above.")
    left = sorted(folder.rglob("annotations.json"))
    if not left:
        raise InputError(
            f"The annotator left no annotations.json under {folder}: have it write there, as with "
            "--output_path {folder}."
        )
    return win_rate(json.loads(left[0].read_text(encoding="utf-8")))


def win_rate(annotations: list[dict[str, Any]]) -> WinRate:
    """Return the win rate that annotations mean: ``preference`` is 1 for the reference's output, 2 for ours.

    InputError if none has a preference.
    """
    values = [float(a["preference"]) - 1.0 for a in annotations if a.get("preference") is not None]
    if not values:
        raise InputError("Expected annotations with a preference between 1 and 2, found none.")
    stderr = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return WinRate(statistics.mean(values), stderr, len(values))
