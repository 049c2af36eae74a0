"""Cross-validation by question: every question is judged by a controller that has not seen it.

``dps crossval`` trains one controller per fold through the same LightningCLI as ``dps fit``, asks each about the
questions of its own fold, and writes ``predictions.h5`` (``predictions``) and ``crossval.json``. A fold that is
finished is not trained again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dps.decide.predictions import FILE, Predictions, write_predictions
from dps.decide.table import Table, fold_of, going_on, orders_of, outcomes
from dps.decide.thresholds import choose_threshold, effective_margin, stops
from dps.errors import InputError
from dps.estimates import MARGIN, bounded
from dps.folders import claim
from feature_store import Store
from feature_store.files import replace_file
from feature_store.lock import held
from lightning_modules.batches import to_tensor
from lightning_modules.cli import resolve, run
from lightning_modules.estimators import Estimator
from lightning_modules.load import Controller, load_controller
from lightning_modules.metrics import (
    Measured,
    fit_length,
    length_probabilities,
    measure_probabilities,
    question_draws,
)
from lightning_modules.results import baselines, nothing_learnt, skills_against

if TYPE_CHECKING:
    from lightning_modules.trainer_cli import ControllerCLI

REPORT = "crossval.json"
FORMAT_VERSION = 1

_DRAWS = 1000
"""Bootstrap draws of questions."""
_QUESTIONS = 256
"""Questions that are predicted at a time: bounds the memory, changes no result."""
_BYTES = 16 * 2**20
"""Bytes of their hidden states in float32, which decides where they are large."""


def crossval(args: Sequence[str], folds: int, output: Path | None) -> Path:
    """Train a controller per fold, predict every question out of its fold, measure.

    Args:
        args: Options of ``dps fit``.
        folds: Number of folds.
        output: Folder of everything; ``crossval`` in the configuration's run folder if None.

    Returns:
        The folder.

    Raises:
        InputError: If options, configuration, store or folder cannot be used.
        StoreError: If another run writes to the folder just now.
    """
    if folds < 2:
        raise InputError(f"Expected at least 2 folds, got {folds}.")
    cli = resolve(args)
    data = cli.datamodule
    if data.folds is not None or data.test_store is not None:
        raise InputError("dps crossval sets data.folds, data.fold and the test questions itself: leave them out.")
    check_folds(folds, data.store)
    folder = output if output is not None else cli.run_folder / "crossval"
    results = (REPORT, FILE, "fold-*/checkpoints/*.ckpt")
    if claim_folds(folder, cli, "dps crossval", folds, results) and (folder / REPORT).is_file():
        print(f"{folder} holds this cross-validation already: it is measured again, no fold is trained again.")
    with held(folder):
        controllers = [_fold(args, folder / f"fold-{fold}", fold, folds) for fold in range(folds)]
        table = data.whole(cli.model.parts)
        predictions = _predict(table, controllers, data.seed, data.label, data.manifest.fingerprint)
        write_predictions(folder / FILE, predictions)
        report = measure_crossval(predictions, table.lengths, margin=cli.model.margin)
        report |= {
            "store": data.store,
            "validation": [
                {"fold": fold, "threshold": c.threshold, **c.description["validation"]}
                for fold, c in enumerate(controllers)
            ],
        }
        write_json(folder / REPORT, report)
        print(describe(report))
        print(folder / REPORT)
    return folder


def check_folds(folds: int, store: str) -> None:
    """Refuse more folds than a store has questions.

    Args:
        folds: Number of folds.
        store: Folder of the store.

    Raises:
        InputError: If some fold would have no question.
    """
    count = len(Store.open(store))
    if folds > count:
        raise InputError(f"Expected at most as many folds as {store} has questions, {count:,}, got {folds:,}.")


def claim_folds(folder: Path, cli: ControllerCLI, command: str, folds: int, results: Sequence[str]) -> bool:
    """Note what a folder is of, or refuse one that is of something else, see :func:`dps.folders.claim`.

    Args:
        folder: Where the results go.
        cli: The resolved configuration.
        command: ``dps crossval`` or ``dps tune``.
        folds: Number of folds.
        results: What the results are called.

    Returns:
        Whether results of the same run stand there.

    Raises:
        InputError: If the folder holds results of another command, configuration, number of folds or store.
    """
    epochs = {"max_epochs": cli.trainer.max_epochs}
    return claim(folder, command, {"folds": folds, **epochs, **cli.settings(folder)}, results)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, complete or not at all."""
    replace_file(path, json.dumps(content, indent=1) + "\n")


def fold_questions(folder: Path) -> dict[str, list[str]]:
    """Return the ids of the questions that a finished fold used, by split; ``folder`` is the fold's."""
    return json.loads((folder / "fold.json").read_text())


def predict_table(estimator: Estimator, table: Table) -> np.ndarray:
    """Return p_enough of every row of a table: shape (Q, O, C), float64.

    Args:
        estimator: In float64, as :func:`lightning_modules.load_controller` gives it.
        table: With the parts that the estimator looks at.
    """
    shape = table.scalars.shape[:3]
    rows = shape[1] * shape[2]
    found = np.empty((shape[0], rows))
    questions = max(1, min(_QUESTIONS, _BYTES // max(1, table.question_bytes)))
    for start in range(0, shape[0], questions):
        part = slice(start, start + questions)
        scalars = table.scalars[part].reshape(-1, table.scalars.shape[-1])
        hidden = table.inputs_of(np.arange(start * rows, start * rows + len(scalars)))
        arrays = (scalars, hidden, np.repeat(table.embedding[part], rows, axis=0))
        tensors = [to_tensor(each, torch.float64) for each in arrays]
        found[part] = estimator.predict_enough(*tensors).numpy().reshape(-1, rows)
    return found.reshape(shape)


def measure_crossval(
    predictions: Predictions, lengths: np.ndarray, seed: int = 0, margin: float = MARGIN
) -> dict[str, Any]:
    """Measure out-of-fold predictions beside question length alone, and the policy that they make.

    Args:
        predictions: Of every question; those without a grade are left out.
        lengths: Prompt tokens of each question, shape (Q,).
        seed: Of the bootstrap over questions, one for all numbers, so that differences are paired.
        margin: Accuracy that counts as no loss where the threshold is chosen that ``dps ship`` takes.

    Returns:
        What ``crossval.json`` holds; every ``stderr`` is clustered by question.
    """
    graded = predictions.label[:, 0, 0] >= 0
    p, labels = predictions.p_enough[graded], predictions.label[graded] > 0
    fold, lengths = predictions.fold[graded], lengths[graded].astype(np.float64)
    correct, tokens = predictions.correct[graded] > 0, predictions.tokens[graded]
    draws = question_draws(len(p), _DRAWS, seed)
    by_length = np.broadcast_to(_length_out_of_fold(lengths, labels, fold)[:, None, None], p.shape)

    rows = {"all": slice(None)} | {f"k{k}": slice(c, c + 1) for c, k in enumerate(predictions.ks[:-1])}
    measured = {}
    for name, part in rows.items():
        flat = [values[..., part].reshape(len(p), -1) for values in (p, by_length, labels)]
        ours, baseline = (measure_probabilities(each, flat[2], draws) for each in flat[:2])
        measured[name] = {
            "label_share": float(flat[2].mean()),
            "controller": {metric: _numbers(value) for metric, value in ours.items()},
            "length": {metric: _numbers(value) for metric, value in baseline.items()},
            "difference": {metric: _numbers(value.minus(baseline[metric])) for metric, value in ours.items()},
        }
    by_fold = []
    for number in np.unique(fold):
        chosen = fold == number
        count = int(chosen.sum())
        found = measure_probabilities(
            p[chosen].reshape(count, -1), labels[chosen].reshape(count, -1), np.zeros((0, count))
        )
        by_fold.append(
            {
                "fold": int(number),
                "num_questions": count,
                "threshold": float(predictions.threshold[graded][chosen][0]),
                **{metric: _finite(value.value) for metric, value in found.items()},
            }
        )
    score, reached = going_on(p, predictions.label_name), outcomes(correct, predictions.label_name)
    stop = stops_at(score, predictions.threshold[graded])
    fitted = stops_at(score, cross_fitted(score, reached, tokens, fold, margin))
    return {
        "format_version": FORMAT_VERSION,
        "name": predictions.name,
        "label": predictions.label_name,
        "block": predictions.block,
        "feature_set": predictions.feature_set,
        "aggregator": predictions.aggregator,
        "ks": list(predictions.ks),
        "seed": predictions.seed,
        "store_fingerprint": predictions.store_fingerprint,
        "num_questions": len(p),
        "num_orders": p.shape[1],
        "num_draws": _DRAWS,
        "rows": measured,
        "folds": by_fold,
        "skill": _skill_out_of_fold(p, labels, lengths, fold),
        "policy": _policy(stop, reached, correct, tokens, predictions.ks, draws),
        "shipped": {
            "margin": effective_margin(len(p), margin),
            "threshold": choose_threshold(score, reached, tokens, margin),
            "policy": _policy(fitted, reached, correct, tokens, predictions.ks, draws),
        },
    }


def cross_fitted(
    score: np.ndarray, reached: np.ndarray, tokens: np.ndarray, fold: np.ndarray, margin: float
) -> np.ndarray:
    """Return for each question the threshold that the questions of the other folds choose: shape (Q,).

    Args:
        score: What must be above the threshold to go on, out of fold: shape (Q, O, C).
        reached: Whether the policy is right that stops at each k: shape (Q, O, C + 1).
        tokens: Shape (Q, O, C + 1).
        fold: Shape (Q,).
        margin: Accuracy that counts as no loss.
    """
    found = np.empty(len(fold))
    for number in np.unique(fold):
        others = fold != number if len(np.unique(fold)) > 1 else fold == number
        found[fold == number] = choose_threshold(score[others], reached[others], tokens[others], margin)
    return found


def stops_at(p_inc: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return where each order of each question stops under its own threshold: shape (Q, O), indices into the k's.

    Args:
        p_inc: Shape (Q, O, C).
        thresholds: Shape (Q,).
    """
    return stops(p_inc - thresholds[:, None, None], 0.0)


def describe(report: Mapping[str, Any]) -> str:
    """Return a report of a cross-validation in a few lines."""

    def text(found: Mapping[str, Any], percent: bool = False) -> str:
        if found["value"] is None:
            return "–"
        value, stderr = found["value"], found["stderr"]
        if percent:
            return f"{value:.1%}" if stderr is None else f"{value:.1%} ± {stderr:.1%}"
        return f"{value:.3f}" if stderr is None else f"{value:.3f} ± {stderr:.3f}"

    every, policy = report["rows"]["all"], report["policy"]
    lines = [
        f"{report['name']} ({report['feature_set']}), {report['label']}{_after(report)}: {report['num_questions']} "
        "questions, "
        f"{len(report['folds'])} folds, out of fold; ± is clustered by question"
    ]
    titles = {"auroc": "AUROC", "average_precision": "average precision", "brier": "Brier score"}
    titles |= {"brier_skill": "Brier skill", "calibration_error": "calibration error", "log_loss": "log loss"}
    for metric, title in titles.items():
        lines.append(f"{title:<20}{text(every['controller'][metric])}   length alone {text(every['length'][metric])}")
        if metric == "auroc":
            by_k = [
                f"k = {name[1:]}: {text(found['controller'][metric])}"
                for name, found in report["rows"].items()
                if name != "all"
            ]
            lines.append(f"{'  at one k':<20}{', '.join(by_k)}")
    last, shipped = report["ks"][-1], report["shipped"]

    def row(title: str, policy: Mapping[str, Any], threshold: str) -> str:
        difference, ratio = policy["accuracy_difference"], policy["tokens_ratio"]
        return (
            f"{title:<20}accuracy {text(policy['accuracy'], True)}, k = {last}: "
            f"{text(policy['accuracy_maximum'], True)}, difference {100 * difference['value']:+.2f} points "
            f"[{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}], tokens {ratio['value']:.3f} of it "
            f"[{ratio['low']:.3f}, {ratio['high']:.3f}], mean k {policy['mean_k']['value']:.2f}; {threshold}"
        )

    lines.append(row("policy", policy, "thresholds of the folds' own trainings"))
    lines.append(
        row(
            "as shipped",
            shipped["policy"],
            f"thresholds of the other folds' questions (of all: {shipped['threshold']:.3f}, to exclude a loss of "
            f"{100 * shipped['margin']:.1f} points)",
        )
    )
    warning = nothing_learnt(report["skill"], report["num_questions"])
    if warning is not None:
        lines.append(f"Warning: {warning}")
    return "\n".join(lines)


def _after(report: Mapping[str, Any]) -> str:
    """Return in words after which block a controller is asked; nothing at the end."""
    return "" if report["block"] is None else f" after block {report['block']}"


# -- parts of the above ------------------------------------------------------------------------------------------------


def _fold(args: Sequence[str], folder: Path, fold: int, folds: int) -> Controller:
    """Return the controller of a fold, trained now unless its fold was finished before."""
    done = folder / "fold.json"
    if done.is_file():
        print(f"fold {fold + 1} of {folds}: trained already, {folder}")
        return load_controller(folder)
    options = (f"--data.init_args.folds={folds}", f"--data.init_args.fold={fold}")
    print(f"fold {fold + 1} of {folds}", flush=True)
    cli = run(["fit", *args, *options, f"--trainer.default_root_dir={folder}"])
    cli.datamodule.setup("fit")  # what did so already where it was trained just now
    # A training that was interrupted leaves a checkpoint, too, so its end is marked.
    write_json(done, cli.datamodule.questions())
    return load_controller(folder)


def _predict(table: Table, controllers: Sequence[Controller], seed: int, label: str, fingerprint: str) -> Predictions:
    """Ask each controller about the questions of its own fold."""
    folds = np.array([fold_of(name, len(controllers), seed) for name in table.divided_as()], dtype=np.int32)
    num_orders = table.scalars.shape[1]
    p_enough = np.zeros(table.scalars.shape[:3])
    threshold = np.zeros(len(folds))
    for fold, controller in enumerate(controllers):
        mine = folds == fold
        if mine.any():
            p_enough[mine] = predict_table(controller.estimator, table.select(mine))
        threshold[mine] = controller.threshold
    first = controllers[0]
    ungraded = ~table.graded[:, None, None]
    return Predictions(
        name=first.name,
        label_name=label,
        ks=table.ks,
        block=first.block,
        feature_set=first.feature_set,
        aggregator=first.description["data"]["aggregator"],
        seed=seed,
        store_fingerprint=fingerprint,
        question_ids=table.question_ids,
        fold=folds,
        orders=np.stack([orders_of(name, table.ks[-1], num_orders, seed) for name in table.question_ids]).astype(
            np.int32
        ),
        p_enough=p_enough,
        threshold=threshold,
        label=np.where(ungraded, -1, table.labels(label)).astype(np.int8),
        correct=np.where(ungraded, -1, table.correct).astype(np.int8),
        tokens=table.tokens,
    )


def _length_out_of_fold(lengths: np.ndarray, labels: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the probability of the label by length alone, fitted on the other folds: shape (Q,)."""
    shares = labels.reshape(len(labels), -1).mean(axis=1)
    found = np.zeros(len(lengths))
    for number in np.unique(fold):
        mine = fold == number
        found[mine] = length_probabilities(fit_length(lengths[~mine], shares[~mine]), lengths[mine])
    return found


def _skill_out_of_fold(
    p: np.ndarray, labels: np.ndarray, lengths: np.ndarray, fold: np.ndarray
) -> dict[str, dict[str, float] | None]:
    """Return the Brier skill against k alone and k with question length, both fitted on the other folds."""
    shape = (len(p), p.shape[2])
    others = {"k": np.zeros(shape), "length": np.zeros(shape)}
    for number in np.unique(fold):
        mine = fold == number
        if mine.all():  # nothing else to fit on
            return {name: None for name in others}
        for name, found in baselines(labels[~mine], lengths[~mine], lengths[mine]).items():
            others[name][mine] = found
    return skills_against(p, labels, others)


def _policy(
    stop: np.ndarray, reached: np.ndarray, correct: np.ndarray, tokens: np.ndarray, ks: Sequence[int], draws: np.ndarray
) -> dict[str, Any]:
    """Return what stopping there gives, against k = maximum on the same questions in the same orders.

    Args:
        stop: See :func:`stops_at`.
        reached: Whether the policy is right that stops at each k: shape (Q, O, C + 1).
        correct: Whether the answer of the first k is right: shape (Q, O, C + 1).
        tokens: Shape (Q, O, C + 1).
        ks: The C + 1 values of k.
        draws: Shape (D, Q).
    """
    index = stop[..., None]
    right = np.take_along_axis(reached, index, axis=-1)[..., 0].mean(axis=1)
    spent = np.take_along_axis(tokens, index, axis=-1)[..., 0].mean(axis=1)
    all_right, all_spent = correct.mean(axis=1), tokens.mean(axis=1)
    found = {
        "accuracy": _mean(right, draws),
        "accuracy_maximum": _mean(all_right[:, -1], draws),
        "accuracy_difference": _mean(right - all_right[:, -1], draws),
        "tokens": _mean(spent, draws),
        "tokens_maximum": _mean(all_spent[:, -1], draws),
        "tokens_ratio": Measured(
            float(spent.sum() / all_spent[:, -1].sum()), (draws @ spent) / (draws @ all_spent[:, -1])
        ),
        "mean_k": _mean(np.asarray(ks)[stop].mean(axis=1), draws),
    }
    fixed = {
        f"k{k}": {
            "accuracy": _numbers(_mean(all_right[:, c], draws)),
            "tokens": _numbers(_mean(all_spent[:, c], draws)),
        }
        for c, k in enumerate(ks)
    }
    exact = bounded(right - all_right[:, -1])
    numbers = {name: _numbers(value) for name, value in found.items()}
    numbers["accuracy_difference"] |= {"low": _finite(exact.low), "high": _finite(exact.high)}
    return numbers | {"fixed": fixed}


def _mean(values: np.ndarray, draws: np.ndarray) -> Measured:
    return Measured(float(values.mean()), draws @ values / draws.sum(axis=1))


def _numbers(measured: Measured) -> dict[str, float | None]:
    low, high = measured.interval()
    values = {"value": measured.value, "stderr": measured.stderr, "low": low, "high": high}
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    """Return the number, or None where there is none: JSON has no NaN."""
    return value if math.isfinite(value) else None
